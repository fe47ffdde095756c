//! Behaviours of the whole programs, one module a behaviour. Each starts the shipped programs and
//! speaks to them over their sockets.

// A failed unwrap is a failed test.
#![allow(clippy::unwrap_used)]

mod adapter_access;
mod adapter_answers;
mod adapter_api;
mod adapter_bad_input;
mod adapter_certificates;
mod adapter_clients;
mod adapter_explain;
mod adapter_exporters;
mod adapter_flags;
mod adapter_negative;
mod adapter_replicas;
mod adapter_truth;
mod attribution;
mod availability;
mod bad_input;
mod demo;
mod device_loss;
mod dra;
mod endurance;
mod events;
mod exposition;
mod faults;
mod fields;
mod flags;
mod grafana;
mod kubernetes;
mod manifests;
mod mig;
mod no_driver;
mod pod_labels;
mod real_prometheus;
mod reload;
mod shares;
mod utilization;
mod web_config;
mod whole_way;
