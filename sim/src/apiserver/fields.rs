//! Owns whose a field is: `metadata.managedFields`, as far as server-side apply needs it. A list
//! is one field.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// A field's place, from the object's root.
type Path = Vec<String>;
/// Manager and operation (`Apply` or `Update`).
type Manager = (String, String);

/// Applies a configuration in a manager's name: sets what it says, removes what it said before and
/// does not say now. The error names the managers whose fields it would change.
pub(super) fn apply(
    object: &mut Value,
    configuration: &Value,
    manager: &str,
    force: bool,
) -> Result<(), String> {
    let me: Manager = (manager.to_owned(), "Apply".to_owned());
    let mut owners = owners(object);
    let said = leaves(configuration);
    let mut conflicts = BTreeSet::new();
    for (other, fields) in owners.iter_mut().filter(|(other, _)| **other != me) {
        for (path, value) in &said {
            if fields.contains(path) && get(object, path) != Some(value) {
                conflicts.insert(format!("conflict with {:?}: .{}", other.0, path.join(".")));
                fields.remove(path);
            }
        }
    }
    if !force && !conflicts.is_empty() {
        let conflicts: Vec<String> = conflicts.into_iter().collect();
        return Err(format!("Apply failed with conflicts: {}", conflicts.join("; ")));
    }
    for path in owners.remove(&me).unwrap_or_default() {
        if !said.contains_key(&path) && !owners.values().any(|fields| fields.contains(&path)) {
            remove(object, &path);
        }
    }
    for (path, value) in &said {
        set(object, path, value.clone());
    }
    owners.insert(me, said.into_keys().collect());
    write(object, &owners);
    Ok(())
}

/// Notes what a plain write changed, in a manager's name.
pub(super) fn update(before: Option<&Value>, after: &mut Value, manager: &str) {
    let nothing = json!({"metadata": {}});
    let before = before.unwrap_or(&nothing);
    let (was, is) = (leaves(before), leaves(after));
    let mut owners = owners(before);
    let changed: BTreeSet<Path> = is
        .iter()
        .filter(|(path, value)| was.get(*path) != Some(value))
        .map(|(path, _)| path.clone())
        .collect();
    for fields in owners.values_mut() {
        fields.retain(|path| is.contains_key(path) && !changed.contains(path));
    }
    owners.entry((manager.to_owned(), "Update".to_owned())).or_default().extend(changed);
    write(after, &owners);
}

/// Every field that somebody may own, with its value.
fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    fn walk(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    path.push(name.clone());
                    walk(value, path, found);
                    path.pop();
                }
            }
            value => {
                found.insert(path.clone(), value.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(object, &mut Vec::new(), &mut found);
    found.retain(|path, value| {
        !value.is_null()
            && match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["metadata", part, ..] => part == "labels" || part == "annotations",
                ["apiVersion" | "kind" | "metadata" | "status", ..] => false,
                _ => true,
            }
    });
    found
}

fn owners(object: &Value) -> BTreeMap<Manager, BTreeSet<Path>> {
    fn walk(fields: &Map<String, Value>, path: &mut Path, found: &mut BTreeSet<Path>) {
        for (name, below) in fields {
            path.push(name.trim_start_matches("f:").to_owned());
            match below.as_object() {
                Some(below) if !below.is_empty() => walk(below, path, found),
                _ => {
                    found.insert(path.clone());
                }
            }
            path.pop();
        }
    }
    let mut found = BTreeMap::new();
    for entry in object["metadata"]["managedFields"].as_array().into_iter().flatten() {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let mut paths = BTreeSet::new();
        if let Some(fields) = entry["fieldsV1"].as_object() {
            walk(fields, &mut Vec::new(), &mut paths);
        }
        found.insert((text("manager"), text("operation")), paths);
    }
    found
}

fn write(object: &mut Value, owners: &BTreeMap<Manager, BTreeSet<Path>>) {
    let entries: Vec<Value> = owners
        .iter()
        .filter(|(_, paths)| !paths.is_empty())
        .map(|((manager, operation), paths)| {
            let mut fields = json!({});
            for path in paths {
                path.iter().fold(&mut fields, |below, name| {
                    if below[format!("f:{name}")].is_null() {
                        below[format!("f:{name}")] = json!({});
                    }
                    &mut below[format!("f:{name}")]
                });
            }
            json!({
                "manager": manager, "operation": operation, "apiVersion": object["apiVersion"],
                "fieldsType": "FieldsV1", "fieldsV1": fields,
            })
        })
        .collect();
    object["metadata"]["managedFields"] = entries.into();
}

fn get<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, name| value.get(name))
}

fn set(object: &mut Value, path: &[String], value: Value) {
    let place = path.iter().fold(object, |below, name| {
        if !below.is_object() {
            *below = json!({});
        }
        &mut below[name.as_str()]
    });
    *place = value;
}

fn remove(object: &mut Value, path: &[String]) {
    let Some((name, above)) = path.split_last() else { return };
    let parent = above.iter().try_fold(object, |value, name| value.get_mut(name));
    if let Some(fields) = parent.and_then(Value::as_object_mut) {
        fields.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(bundle: &str) -> Value {
        json!({"apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"caBundle": bundle}})
    }

    #[test]
    fn an_apply_takes_a_field_of_another_manager_only_by_force() {
        let mut object =
            json!({"apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"group": "g", "caBundle": "x"}});
        update(None, &mut object, "kubectl");
        let refused = apply(&mut object.clone(), &service("y"), "me", false).unwrap_err();
        assert!(refused.contains("\"kubectl\": .spec.caBundle"), "{refused}");
        apply(&mut object, &service("y"), "me", true).unwrap();
        assert_eq!(object["spec"], json!({"group": "g", "caBundle": "y"}));
        // What I no longer say goes; what the other says stays.
        apply(&mut object, &json!({"spec": {}}), "me", false).unwrap();
        assert_eq!(object["spec"], json!({"group": "g"}));
    }

    #[test]
    fn what_a_plain_write_changes_is_its_writers() {
        let mut object = json!({"apiVersion": "v1", "metadata": {}});
        apply(&mut object, &service("y"), "me", false).unwrap();
        let before = object.clone();
        object["spec"]["caBundle"] = "".into();
        update(Some(&before), &mut object, "git");
        let managers = object["metadata"]["managedFields"].to_string();
        assert!(managers.contains("\"git\"") && !managers.contains("\"me\""), "{managers}");
    }
}
