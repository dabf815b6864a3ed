// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is VMX's alone. The rest is in [`crate::extension`]'s tests.

mod controls;
mod delivery;
mod modes;
mod nmi;

use super::*;
use crate::backend::vcpu::Vcpu;
use crate::extension::tests::guest::{CR0, Poke};
use crate::extension::tests::guest::{Guest, Rig};
use crate::extension::{ControlBlock, Extension, Pcpu};

impl VmxVcpu {
    /// Changes what only code of the guest could. Before its first entry.
    pub(crate) fn poke(&mut self, poke: Poke) {
        match poke {
            Poke::Idt(base, limit) => {
                self.vmcs.write(Field::GuestIdtrBase, base);
                self.vmcs.write(Field::GuestIdtrLimit, limit.into());
            }
            Poke::Cr3(value) => self.vmcs.write(Field::GuestCr3, value),
            Poke::SystemCalls([star, lstar, fmask]) => self.switched.set_system_calls(star, lstar, fmask),
            Poke::User => {
                let flat = |selector, attributes| segment::Segment {
                    selector,
                    attributes,
                    limit: u32::MAX,
                    base: 0,
                };
                self.write_segment(SegmentRegister::Cs, flat(0xb, 0xafb));
                self.write_segment(SegmentRegister::Ss, flat(0x13, 0xcf3));
                self.vmcs.write(Field::GuestCr0, CR0 | 1 << 18);
            }
        }
    }
}

/// The control block of a guest under VMX.
fn block(vcpu: &mut Vcpu<ControlBlock>) -> &mut VmxVcpu {
    match vcpu.parts().0 {
        ControlBlock::Vmx(block) => block,
        ControlBlock::Svm(_) => panic!("a guest under SVM"),
    }
}

/// VMX of a pCPU.
fn pcpu(rig: &mut Rig) -> &mut VmxPcpu {
    match &mut rig.pcpu {
        Pcpu::Vmx(pcpu) => pcpu,
        Pcpu::Svm(_) => panic!("a pCPU with SVM"),
    }
}

/// A machine with VMX on, and a guest.
fn rig(code: &[u8]) -> (Rig, Guest) {
    (Rig::new(Extension::Vmx), Guest::new(Extension::Vmx, code))
}

#[test]
fn vmx_is_turned_on_once_and_only_where_the_firmware_lets_it() {
    use crate::cpu::{self, msr};
    use crate::extension::tests::guest::frames;
    use pasidon_cpu::{Model, Processor};

    // SAFETY: this model has VMX, and so the register.
    let control = |value| move || unsafe { cpu::write_msr(msr::IA32_FEATURE_CONTROL, value) };
    let enable = || VmxPcpu::enable(0, frames()).map(drop);
    let mut processor = Processor::new(Model::SapphireRapids);
    processor.run(control(1)).unwrap();
    assert!(processor.run(enable).unwrap().unwrap_err().why.contains("disabled VMX"));
    drop(processor);

    let mut processor = Processor::new(Model::SapphireRapids);
    processor.run(enable).unwrap().unwrap();
    // SAFETY: the register exists where there is VMX.
    let found = processor.run(|| unsafe { cpu::read_msr(msr::IA32_FEATURE_CONTROL) }).unwrap();
    assert_eq!(found & 5, 5, "locked, and on");
    assert_eq!(processor.run(enable).unwrap().unwrap_err().why, "VMXON fails", "it is on already");
}

#[test]
fn a_vcpu_that_comes_back_to_a_pcpu_finds_nothing_of_before() {
    use pasidon_arch_common::hardware::Stage2;
    use pasidon_cpu::Pages;
    use pasidon_kernel::base::addr::{GuestPhys, PAGE_SIZE};

    const DEVICE: GuestPhys = GuestPhys(0x3000_0000);
    // mov rax, [rsi]; hlt
    let (mut machine, mut guest) = rig(&[0x48, 0x8b, 0x06, 0xf4]);
    let pages = [0xaa_u64, 0xbb, 0xcc].map(|value| {
        let page = Pages::new(1);
        page.write(0, value);
        page
    });
    let look = |machine: &mut Rig, guest: &mut Guest| {
        guest.vcpu.set_gpr(6, DEVICE.0);
        guest.jump(0x1000);
        assert_eq!(machine.enter(guest), Reason::Halt);
        guest.vcpu.gpr(0)
    };
    let map = |guest: &mut Guest, page: &Pages| {
        guest.table.unmap_portal(DEVICE, PAGE_SIZE);
        guest.table.map_portal(DEVICE, HostPhys(page.address()), PAGE_SIZE).unwrap();
    };
    map(&mut guest, &pages[0]);
    assert_eq!(look(&mut machine, &mut guest), 0xaa);
    map(&mut guest, &pages[1]);
    assert_eq!(look(&mut machine, &mut guest), 0xaa, "or this test shows nothing");
    // It is the same processor, with another number.
    pcpu(&mut machine).index = 1;
    assert_eq!(look(&mut machine, &mut guest), 0xbb, "on another one");
    map(&mut guest, &pages[2]);
    pcpu(&mut machine).index = 0;
    assert_eq!(look(&mut machine, &mut guest), 0xcc, "back again");
    map(&mut guest, &pages[0]);
    let (root, policy) = (guest.table.root(), crate::guest::control::tests::policy(true));
    guest.vcpu = Vcpu::new(Extension::Vmx.control_block(root, 0, &policy, guest.lapic.page()), policy);
    guest.start(0x1000);
    assert_eq!(look(&mut machine, &mut guest), 0xaa, "another VM whose top table is in the same frame");
}

#[test]
fn who_is_to_blame_for_an_entry_that_fails_is_told_apart() {
    let enter =
        |machine: &mut Rig, guest: &mut Guest| machine.on(guest, |vcpu, pcpu| vcpu.enter(pcpu, false));
    let (mut machine, mut guest) = rig(&[0xf4]);
    block(&mut guest.vcpu).vmcs.write(Field::GuestCr3, 1 << 63);
    assert_eq!(enter(&mut machine, &mut guest), Reason::Failed(1 << 31 | 33));
    assert!(machine.processor.refusal().unwrap().contains("CR3"));

    let (_, mut guest) = (drop(machine), Guest::new(Extension::Vmx, &[0xf4]));
    let mut machine = Rig::new(Extension::Vmx);
    pcpu(&mut machine).controls.pin = 0;
    const INVALID_CONTROLS: u64 = 7;
    let reason = enter(&mut machine, &mut guest);
    assert!(matches!(reason, Reason::HostFault { code: INVALID_CONTROLS, .. }), "{reason:?}");
}
