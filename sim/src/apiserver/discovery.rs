//! Owns discovery: `/version`, `/api`, `/apis` and the lists below them, as far as kubectl and
//! client libraries need them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::kinds::{RESOURCES, Resource};
use crate::aggregator::ApiService;

pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0-podgauge-sim", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-11-21T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

pub(crate) fn core_versions(address: SocketAddr) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address.to_string()}],
    })
}

/// `/apis`, aggregated groups included: the API server makes it from the APIServices.
pub(crate) fn groups(aggregated: &[ApiService], unserved: &BTreeSet<String>) -> Value {
    let mut groups: Vec<Value> = Vec::new();
    let own = own_groups().into_iter().filter(|name| !unserved.contains(*name));
    for name in own.chain(aggregated_groups(aggregated)) {
        if let Some(mut group) = group(name, aggregated) {
            if let Some(fields) = group.as_object_mut() {
                // Items of a list carry no kind of their own.
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            groups.push(group);
        }
    }
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/<group>`.
pub(crate) fn group(name: &str, aggregated: &[ApiService]) -> Option<Value> {
    let mut versions: Vec<(i32, &str)> = aggregated
        .iter()
        .filter(|api| api.group == name)
        .map(|api| (api.version_priority, api.version.as_str()))
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    if versions.is_empty() && own_groups().contains(&name) {
        versions.push((0, "v1"));
    }
    let version = |version: &str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let preferred = version(versions.first()?.1);
    Some(json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "versions": versions.iter().map(|(_, v)| version(v)).collect::<Vec<_>>(),
        "preferredVersion": preferred,
    }))
}

/// `/api/v1` or `/apis/<group>/<version>`, if this server serves it itself.
pub(crate) fn resources(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Resource> =
        RESOURCES.iter().filter(|r| r.group == group && r.version == version).collect();
    let group_version = rows.first()?.api_version();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": rows.iter().map(|row| row.discovery()).collect::<Vec<_>>(),
    }))
}

fn own_groups() -> Vec<&'static str> {
    let mut names: Vec<&'static str> =
        RESOURCES.iter().map(|r| r.group).filter(|group| !group.is_empty()).collect();
    names.dedup();
    names
}

fn aggregated_groups(aggregated: &[ApiService]) -> impl Iterator<Item = &str> {
    let mut names: Vec<&str> = aggregated.iter().map(|api| api.group.as_str()).collect();
    names.dedup();
    names.into_iter()
}
