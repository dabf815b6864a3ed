// SPDX-License-Identifier: MIT OR Apache-2.0
//! Vdevs that are created, moved and destroyed, and their interrupts.

use alloc::format;
use alloc::string::String;

use serde::Serialize;

use super::info::vdev_name;
use super::spaces;
use super::{Command, Dismissal, MonitorHost, NewVdev, answer, done, find_vdev, find_vm};
use crate::base::refusal::Refusal;
use crate::irq::vectors::{VectorControl, Vectors};

/// `vdev destroy …`
pub(super) fn destroy(
    host: &mut dyn MonitorHost,
    vdev: &str,
    now: bool,
    as_json: bool,
) -> Result<String, Refusal> {
    let vdev = find_vdev(host, vdev)?;
    let dismissal = host.destroy_vdev(vdev.info.id, now)?;
    let what = match dismissal {
        Dismissal::Ended => format!("vdev {} destroyed", vdev.name),
        Dismissal::Asked => format!("vdev {}: its guest is asked to let go of it", vdev.name),
    };
    Ok(done(as_json, &what))
}

#[derive(Serialize)]
struct Created<'a> {
    vdev: u32,
    name: &'a str,
    done: &'a str,
}

/// `vdev create …`
pub(super) fn create(
    host: &mut dyn MonitorHost,
    vm: &str,
    slice: &str,
    options: &[&str],
    command: &Command,
    as_json: bool,
) -> Result<String, Refusal> {
    let wanted = wanted(vm, slice, options, command)?;
    let vm = find_vm(host, vm)?;
    let id = host.create_vdev(NewVdev { vm: &vm.name, ..wanted })?;
    let name = vdev_name(wanted.parent, wanted.type_name, id);
    let text = format!("vdev {name} created for vm {}", vm.name);
    Ok(answer(as_json, &Created { vdev: id, name: &name, done: &text }, || format!("{text}\n")))
}

/// `vdev move …`
pub(super) fn go_over(
    host: &mut dyn MonitorHost,
    vdev: &str,
    slice: &str,
    options: &[&str],
    command: &Command,
    as_json: bool,
) -> Result<String, Refusal> {
    let vdev = find_vdev(host, vdev)?;
    let wanted = wanted(&vdev.info.vm, slice, options, command)?;
    let (id, dismissal) = host.move_vdev(vdev.info.id, wanted)?;
    let name = vdev_name(wanted.parent, wanted.type_name, id);
    let old = match dismissal {
        Dismissal::Ended => format!("{} has ended", vdev.name),
        Dismissal::Asked => format!("its guest is asked to let go of {}", vdev.name),
    };
    let text = format!("vdev {name} created for vm {}; {old}", vdev.info.vm);
    Ok(answer(as_json, &Created { vdev: id, name: &name, done: &text }, || format!("{text}\n")))
}

/// `vdev irq …`
pub(super) fn irq(
    host: &mut dyn MonitorHost,
    vdev: &str,
    vectors: &str,
    verb: &[&str],
    command: &Command,
    as_json: bool,
) -> Result<String, Refusal> {
    let (control, past) = match verb {
        ["mask"] => (VectorControl::Mask, "masked"),
        ["unmask"] => (VectorControl::Unmask, "unmasked"),
        ["trigger"] => (VectorControl::Trigger, "triggered"),
        ["automask", "on"] => (VectorControl::Automask(true), "automask on"),
        ["automask", "off"] => (VectorControl::Automask(false), "automask off"),
        _ => return Err(command.misused()),
    };
    let vdev = find_vdev(host, vdev)?;
    let which = match vectors {
        "all" => Vectors::All,
        vector => Vectors::One(vector.parse().map_err(|_| command.misused())?),
    };
    host.control_vectors(vdev.info.id, which, control)?;
    let pending =
        host.vectors(vdev.info.id).into_iter().filter(|info| info.pending && which.contain(info.vector));
    let pending: String = pending.map(|info| format!("; {} is pending", info.vector)).collect();
    Ok(done(as_json, &format!("vdev {}: {which}: {past}{pending}", vdev.name)))
}

/// What is asked for, of a VM that need not exist.
fn wanted<'a>(
    vm: &'a str,
    slice: &'a str,
    options: &[&str],
    command: &Command,
) -> Result<NewVdev<'a>, Refusal> {
    let (parent, type_name) = slice.split_once('/').ok_or_else(|| command.misused())?;
    let (mut entries, mut weight, mut ioas) = (None, None, None);
    let what = || format!("vm {vm}: vdev {slice}");
    for option in options {
        match option.split_once('=') {
            Some(("entries", number)) if entries.is_none() => {
                entries = Some(from_one(number).ok_or_else(|| {
                    Refusal::new(what(), "entries is no number from 1 to 65535", "write entries=32")
                })?);
            }
            Some(("weight", number)) if weight.is_none() => {
                let number = from_one(number).and_then(|number| u8::try_from(number).ok());
                weight = Some(number.ok_or_else(|| {
                    Refusal::new(what(), "weight is no number from 1 to 255", "write weight=2")
                })?);
            }
            Some(("ioas", number)) if ioas.is_none() => ioas = Some(spaces::space(number)?),
            _ => return Err(command.misused()),
        }
    }
    Ok(NewVdev { vm, parent, type_name, entries, weight, ioas })
}

fn from_one(number: &str) -> Option<u16> {
    number.parse().ok().filter(|number| *number > 0)
}
