// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that are controlled, defined and removed.

use alloc::format;
use alloc::string::String;

use serde::Serialize;

use super::{MonitorHost, VmControl, answer, done, find_vm, show, unknown};
use crate::base::refusal::Refusal;

/// `vm NAME …`
pub(super) fn control(
    host: &mut dyn MonitorHost,
    vm: &str,
    verb: &str,
    as_json: bool,
) -> Result<String, Refusal> {
    const VERBS: [(&str, VmControl, &str); 7] = [
        ("start", VmControl::Start, "started"),
        ("stop", VmControl::Stop, "stopped"),
        ("restart", VmControl::Restart, "restarted"),
        ("pause", VmControl::Pause, "paused"),
        ("resume", VmControl::Resume, "resumed"),
        ("break", VmControl::Break, "was sent a BREAK"),
        ("remove", VmControl::Remove, "removed"),
    ];
    let Some((_, control, past)) = VERBS.iter().find(|(known, ..)| *known == verb) else {
        return Err(unknown("operation", verb, VERBS.iter().map(|(known, ..)| *known)));
    };
    let vm = find_vm(host, vm)?;
    host.control(&vm.name, *control)?;
    let vdevs = match control {
        VmControl::Pause => find_vm(host, &vm.name).ok().filter(|vm| !vm.vdevs.is_empty()),
        _ => None,
    };
    let vdevs = vdevs.map(|vm| format!("; {}", show::vdev_states(&vm))).unwrap_or_default();
    Ok(done(as_json, &format!("vm {} {past}{vdevs}", vm.name)))
}

#[derive(Serialize)]
struct Defined<'a> {
    vms: &'a [String],
    done: &'a str,
}

/// `vm define FILE`
pub(super) fn define(host: &mut dyn MonitorHost, file: &str, as_json: bool) -> Result<String, Refusal> {
    let known = host.definitions();
    if !known.is_empty() && known.iter().all(|definition| definition.file != file) {
        return Err(unknown("definition", file, known.iter().map(|definition| definition.file.as_str())));
    }
    let vms = host.define(file)?;
    let text = match vms.as_slice() {
        [vm] => format!("vm {vm} defined; `vm {vm} start` starts it"),
        several => format!("vms {} defined; `vm NAME start` starts one", several.join(", ")),
    };
    Ok(answer(as_json, &Defined { vms: &vms, done: &text }, || format!("{text}\n")))
}
