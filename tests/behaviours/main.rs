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
mod adapter_containers;
mod adapter_explain;
mod adapter_exporters;
mod adapter_flags;
mod adapter_limits;
mod adapter_negative;
mod adapter_outage;
mod adapter_pages;
mod adapter_parts;
mod adapter_recent;
mod adapter_replicas;
mod adapter_shutdown;
mod adapter_truth;
mod attribution;
mod availability;
mod bad_input;
mod context_switches;
mod counters_file;
mod demo;
mod device_loss;
mod dra;
mod endurance;
mod events;
mod exposition;
mod faults;
mod fields;
mod flags;
mod gpu_faults;
mod grafana;
mod kubelet_socket;
mod kubernetes;
mod listen;
mod manifests;
mod measurements;
mod metric_names;
mod mig;
mod missed_samples;
mod narrow_page;
mod no_driver;
mod owners;
mod pod_labels;
mod proxy;
mod real_prometheus;
mod reload;
mod rights;
mod shares;
mod utilization;
mod web_config;
mod whole_way;
mod whole_way_owners;
