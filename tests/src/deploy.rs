//! The objects under `deploy/`.

use std::path::PathBuf;

use podgauge_sim::apiserver::Rule;
use serde_json::Value;

use crate::checkout;

/// Every object of every file, with the file's name.
pub fn objects() -> Vec<(String, Value)> {
    let mut files: Vec<PathBuf> = ["deploy/manifests", "deploy/examples"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(checkout(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.ends_with("kustomization.yaml"))
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|file| {
            let text = std::fs::read_to_string(file).unwrap();
            let documents: Vec<Value> =
                serde_saphyr::from_multiple(&text).unwrap_or_else(|e| panic!("{file:?}: {e}"));
            documents.into_iter().map(|document| (file.display().to_string(), document))
        })
        .collect()
}

/// The rights that the Roles and ClusterRoles of that name grant to a user.
pub fn rules(role: &str, user: &str) -> Vec<Rule> {
    let roles = objects().into_iter().map(|(_, object)| object).filter(|object| {
        ["Role", "ClusterRole"].iter().any(|kind| object["kind"] == *kind)
            && object["metadata"]["name"] == role
    });
    roles
        .flat_map(|role| {
            let namespace = role["metadata"]["namespace"].as_str().map(str::to_owned);
            let name = role["metadata"]["name"].as_str().unwrap().to_owned();
            let rule = |rule: &Value| {
                let strings = |name: &str| match &rule[name] {
                    Value::Null => Vec::new(),
                    list => serde_json::from_value(list.clone()).unwrap(),
                };
                Rule {
                    role: name.clone(),
                    users: vec![user.to_owned()],
                    verbs: strings("verbs"),
                    groups: strings("apiGroups"),
                    resources: strings("resources"),
                    names: strings("resourceNames"),
                    namespaces: namespace.iter().cloned().collect(),
                    ..Rule::default()
                }
            };
            role["rules"].as_array().unwrap().iter().map(rule).collect::<Vec<_>>()
        })
        .collect()
}
