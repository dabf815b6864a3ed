// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks against machines that have too little.

use super::*;
use crate::base::drained::Drained;
use crate::config::parse;
use crate::vdev::parent::{
    Attached, DeviceQuiesced, DmaTag, InterruptBinding, ParentEvent, PciIdentity, Portal, QuiesceFailed,
    Remains, UntranslatedMemory, VdevRegisters, VdevType,
};
use crate::vm::exit::MsiMessage;
use std::sync::{Arc, Mutex};

fn config(text: &str) -> Config {
    let parsed = parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.errors, []);
    parsed.config
}

fn lines(errors: &[ConfigError]) -> Vec<String> {
    errors.iter().map(ConfigError::to_string).collect()
}

fn vm(name: &str, more: &str) -> String {
    format!("[[vm]]\nname = \"{name}\"\nmemory = \"64M\"\nkernel = \"k\"\n{more}\n")
}

const PARENT: &str = "[parent.dsa0]\npci = \"0000:00:04.0\"\n";
const VDEV: &str = "[[vm.vdev]]\nparent = \"dsa0\"\ntype = \"dsa-dwq\"\n";

fn device(slot: u8, device: u16) -> PciDevice {
    PciDevice { requester: Requester::new(0, 0, slot, 0), vendor: 0x8086, device }
}

#[test]
fn parents_find_their_devices() {
    let text =
        format!("[parent.a]\nmatch = \"8086:11fb\"\n[parent.b]\npci = \"0000:00:05.0\"\n{}", vm("x", ""));
    let found = resolve_parents(&config(&text), &[device(3, 0x29c0), device(4, 0x11fb), device(5, 0x0b25)]);
    assert_eq!(found.errors, []);
    assert_eq!(found.parents, [(0, device(4, 0x11fb)), (1, device(5, 0x0b25))]);
}

#[test]
fn absent_and_ambiguous_devices_are_said() {
    let text = format!(
        "[parent.a]\nmatch = \"8086:11fb\"\n[parent.b]\npci = \"0000:00:05.0\"\n[parent.c]\nmatch = \
         \"8086:0b25\"\n{}",
        vm("x", "")
    );
    let found = resolve_parents(&config(&text), &[device(3, 0x11fb), device(4, 0x11fb)]);
    assert_eq!(found.parents, []);
    assert_eq!(
        lines(&found.errors),
        [
            "pasidon.toml:2:9: parent a: match = \"8086:11fb\" fits 2 devices; \
             name one of them by pci: 0000:00:03.0, 0000:00:04.0",
            "pasidon.toml:4:7: parent b: the machine has no device at pci = \"0000:00:05.0\"; \
             correct the address, or name the device by match",
            "pasidon.toml:6:9: parent c: the machine has no device with match = \"8086:0b25\"; \
             correct the IDs, or name the device by pci",
        ]
    );
}

#[test]
fn two_parents_on_one_device_are_both_refused() {
    let text = format!("{PARENT}[parent.dsa1]\nmatch = \"8086:11fb\"\n{}", vm("x", ""));
    let mut config = config(&text);
    let found = resolve_parents(&config, &[device(4, 0x11fb)]);
    assert_eq!(found.parents, []);
    assert_eq!(
        lines(&found.errors),
        [
            "pasidon.toml:2:7: parent dsa0: pci = \"0000:00:04.0\" is 0000:00:04.0, which is parent dsa1 \
             too (line 4); keep one of the two, or let each name its own device by pci",
            "pasidon.toml:4:9: parent dsa1: match = \"8086:11fb\" is 0000:00:04.0, which is parent dsa0 \
             too (line 2); keep one of the two, or let each name its own device by pci",
        ]
    );
    config.remove_refused(&found.errors);
    assert_eq!((config.parents.len(), config.vms.len()), (0, 1));
}

#[test]
fn memory_is_counted_in_the_order_of_the_file() {
    let text: String = ["a", "b", "c"].into_iter().map(|name| vm(name, "")).collect();
    let text = text + &vm("later", "autostart = false");
    let config = config(&text);
    assert_eq!(check_memory(&config, 192 << 20), []);
    let text_of = |available| lines(&check_memory(&config, available));
    assert_eq!(
        text_of((150 << 20) + 5),
        ["pasidon.toml:13:10: vm c: memory 64M is more than the 22M that the machine has left after the \
          VMs before it; give the VMs less, or the machine more"]
    );
    assert_eq!(text_of(32 << 20).len(), 4, "not even alone");
    assert!(text_of(32 << 20)[3].contains("the 32M that the machine has left; "));
}

/// Four queues and 32 entries; each slice takes 8 entries where it does not say.
struct FourQueues {
    /// Queues and entries left.
    left: Arc<Mutex<(u16, u16)>>,
}

struct Slice {
    entries: u16,
    left: Arc<Mutex<(u16, u16)>>,
}

impl Drop for Slice {
    fn drop(&mut self) {
        let mut left = self.left.lock().unwrap();
        *left = (left.0 + 1, left.1 + self.entries);
    }
}

impl VdevRegisters for Slice {
    fn identity(&self) -> PciIdentity {
        unreachable!("only reserved")
    }
    fn portals(&self) -> Vec<Portal> {
        unreachable!("only reserved")
    }
    fn read(&mut self, _: u8, _: u64, _: u8) -> u64 {
        unreachable!("only reserved")
    }
    fn write(&mut self, _: u8, _: u64, _: u8, _: u64, _: &mut dyn FnMut(u16)) {
        unreachable!("only reserved")
    }
    fn set_bus_master(&mut self, _: bool, _: &mut dyn FnMut(u16)) {
        unreachable!("only reserved")
    }
    fn remains(&mut self, _: &mut dyn FnMut(u16)) -> Box<dyn Remains> {
        unreachable!("only reserved")
    }
    fn reset(&mut self) -> Result<(), QuiesceFailed> {
        unreachable!("only reserved")
    }
}

impl VdevModel for Slice {
    fn interrupts(&self) -> Vec<InterruptBinding> {
        unreachable!("only reserved")
    }
    fn attach(&mut self, _: Attached) -> Result<(), Refusal> {
        unreachable!("only reserved")
    }

    fn attach_untranslated(&mut self, _: Arc<dyn UntranslatedMemory>) -> Result<(), Refusal> {
        unreachable!("only reserved")
    }
    fn quiesce(&mut self) -> Result<DeviceQuiesced, QuiesceFailed> {
        unreachable!("only reserved")
    }
    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

impl Parent for FourQueues {
    fn name(&self) -> &str {
        "dsa0"
    }
    fn requester(&self) -> Requester {
        Requester::new(0, 0, 4, 0)
    }
    fn dma_tag(&self) -> DmaTag {
        DmaTag::Pasid { bits: 20 }
    }
    fn types(&self) -> &[VdevType] {
        const fn kind(name: &'static str, direct_portal: bool) -> VdevType {
            let needs_iommu = if direct_portal { Some(VdevType::MAPS_A_PAGE) } else { None };
            VdevType { name, description: "", direct_portal, needs_iommu, instances: 4 }
        }
        static TYPES: [VdevType; 2] = [kind("dsa-dwq", true), kind("dsa-swq", false)];
        &TYPES
    }
    fn available(&self, _: &str) -> u16 {
        self.left.lock().unwrap().0
    }
    fn create(&self, request: &VdevRequest<'_>) -> Result<Box<dyn VdevModel>, Refusal> {
        let mut left = self.left.lock().unwrap();
        let entries = request.entries.unwrap_or(8);
        let what = format!("vm {}: vdev dsa0/{}", request.vm, request.type_name);
        if left.0 == 0 {
            return Err(Refusal::new(what, "5th of 4 work queues", "free one"));
        }
        if entries > left.1 {
            let why = format!("{entries} entries of {} left", left.1);
            return Err(Refusal::new(what, why, "use fewer"));
        }
        *left = (left.0 - 1, left.1 - entries);
        Ok(Box::new(Slice { entries, left: Arc::clone(&self.left) }))
    }
    fn set_interrupt(&self, _: u16, _: Option<MsiMessage>) {}
    fn event_interrupt(&self) -> Option<u16> {
        None
    }
    fn interrupt(&self, _: &mut dyn FnMut(ParentEvent)) -> Drained {
        Drained::Empty
    }
    fn describe(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// The errors against four queues, of which all must be free again afterwards.
fn checked(text: &str) -> Vec<String> {
    let parent = FourQueues { left: Arc::new(Mutex::new((4, 32))) };
    let errors = check_vdevs(&config(text), &|_| Ok(&parent));
    assert_eq!(*parent.left.lock().unwrap(), (4, 32), "nothing is kept");
    lines(&errors)
}

#[test]
fn what_fits_passes_and_leaves_no_trace() {
    let text = format!("{PARENT}{}{}", vm("a", &VDEV.repeat(2)), vm("b", &VDEV.repeat(2)));
    assert_eq!(checked(&text), [""; 0]);
}

#[test]
fn one_queue_too_many_is_pointed_at() {
    let text = format!("{PARENT}{}{}", vm("a", &VDEV.repeat(3)), vm("b", &VDEV.repeat(2)));
    assert_eq!(
        checked(&text),
        ["pasidon.toml:26:8: vm b: vdev dsa0/dsa-dwq: 5th of 4 work queues; free one"]
    );
    let later = format!("autostart = false\n{}", VDEV.repeat(4));
    let text = format!("{PARENT}{}{}", vm("later", &later), vm("b", VDEV));
    assert_eq!(
        checked(&text),
        ["pasidon.toml:19:8: vm later: vdev dsa0/dsa-dwq: 5th of 4 work queues; free one"]
    );
}

#[test]
fn a_refused_vm_takes_nothing_from_the_next() {
    let text = format!("{PARENT}{}{}", vm("a", &VDEV.repeat(5)), vm("b", &VDEV.repeat(4)));
    let errors = checked(&text);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("vm a: "));
}

#[test]
fn too_many_entries_are_pointed_at() {
    let text = format!("{PARENT}{}", vm("a", &format!("{VDEV}entries = 33\n")));
    assert_eq!(
        checked(&text),
        ["pasidon.toml:10:11: vm a: vdev dsa0/dsa-dwq: 33 entries of 32 left; use fewer"]
    );
}

#[test]
fn unknown_types_and_types_without_iommu() {
    let typed = |kind: &str| VDEV.replace("dsa-dwq", kind);
    let text = format!("{PARENT}{}{}", vm("a", &typed("dsa-dqw")), vm("b", &typed("gpu-slice")));
    assert_eq!(
        checked(&text),
        [
            "pasidon.toml:9:8: vm a: vdev number 1: parent dsa0 has no type \"dsa-dqw\"; \
             did you mean \"dsa-dwq\"?",
            "pasidon.toml:17:8: vm b: vdev number 1: parent dsa0 has no type \"gpu-slice\"; \
             it offers dsa-dwq, dsa-swq",
        ]
    );
    let text = format!("{PARENT}iommu = \"off\"\n{}{}", vm("a", VDEV), vm("b", &typed("dsa-swq")));
    assert_eq!(
        checked(&text),
        [
            "pasidon.toml:10:8: vm a: vdev number 1: type dsa-dwq maps a page of the device into the guest, which \
          needs an IOMMU, but parent dsa0 has iommu = \"off\"; use another type, or iommu = \"on\""
        ]
    );
}

#[test]
fn unusable_and_refused_parents_are_said() {
    let text = format!("{PARENT}{}", vm("a", VDEV));
    let mut config = config(&text);
    let unusable =
        |_: &str| Err(Refusal::new("parent dsa0", "no IOMMU confines its DMA", "turn it on in the firmware"));
    assert_eq!(
        lines(&check_vdevs(&config, &unusable)),
        ["pasidon.toml:8:10: vm a: vdev number 1: parent dsa0: no IOMMU confines its DMA; \
          turn it on in the firmware"]
    );
    let refused = resolve_parents(&config, &[]).errors;
    config.remove_refused(&refused);
    assert_eq!(
        lines(&check_vdevs(&config, &unusable)),
        ["pasidon.toml:8:10: vm a: vdev number 1: parent dsa0 was refused; correct it first"]
    );
}

#[test]
fn files_are_pointed_at() {
    let config = config(&vm("a", ""));
    let vm = config.vm("a").unwrap();
    assert_eq!(
        vm.file_error("kernel", &vm.kernel, "no such file on the ESP").to_string(),
        "pasidon.toml:4:10: vm a: kernel \"k\": no such file on the ESP; \
         put a good one there or correct the path"
    );
}

/// What the loader says would help is what is said, at what is to blame.
#[test]
fn what_the_loader_refuses_keeps_its_remedy() {
    let config = config(&vm("a", "initrd = \"i\"\n"));
    let vm = config.vm("a").unwrap();
    let said = |what: &str| {
        let refusal = Refusal::new(what, "it needs 40 MiB", "give the VM more memory: 64 MiB at least");
        vm.image_refused(&refusal).to_string()
    };
    let kernel = said("kernel image");
    assert!(
        kernel.contains("vm a: kernel \"k\": it needs 40 MiB; give the VM more memory: 64 MiB"),
        "{kernel}"
    );
    assert!(said("initrd").contains("vm a: initrd \"i\": it needs"), "{}", said("initrd"));
    assert!(said("memory").contains("vm a: memory: it needs"));
    assert!(said("command line").contains("vm a: cmdline: it needs"));

    let known = crate::monitor::info::VmInfo::refused(vm, kernel.clone());
    assert_eq!((known.name.as_str(), &*known.state, known.reason), ("a", "refused", Some(kernel)));
    assert_eq!((known.memory, known.memory_in_use), (vm.memory.value, 0));
}
