// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts that go to guests by their posted-interrupt descriptors, and the way there and back.

use pasidon_kernel::irq::msi::{Delivery, MsiController, PostedInterrupts, Posting, RemappedInterrupt};

use super::super::model::{CAP_CM, CAP_PI, CAP_RWBF, ECAP_C, Raised};
use super::*;
use crate::memory::DmaMemory;

/// The descriptor's page, as its owner has it: gone when nobody holds it.
struct Descriptor {
    memory: Arc<ModelMemory>,
    page: HostPhys,
}

/// Where it is in the page.
const OFFSET: u64 = 0xfc0;
/// The word with ON, SN, NV and NDST.
const CONTROL: u64 = 32;
const ON: u64 = 1 << 0;
const SN: u64 = 1 << 1;
/// NV 0xf2, NDST 0x1_0003.
const NOTIFY: u64 = 0x1_0003 << 32 | 0xf2 << 16;

impl Descriptor {
    fn new(memory: &Arc<ModelMemory>) -> Arc<Self> {
        let descriptor = Self { memory: Arc::clone(memory), page: memory.alloc(1).unwrap() };
        memory.write64(HostPhys(descriptor.address().0 + CONTROL), NOTIFY);
        Arc::new(descriptor)
    }

    fn word(&self, offset: u64) -> HostPhys {
        HostPhys(self.address().0 + offset)
    }

    /// What has been posted, as the processor finds it: it takes the bits and ON away.
    fn take(&self) -> (Vec<u64>, bool) {
        let vectors = |word: u64| {
            let found = self.memory.read64(self.word(word * 8));
            self.memory.write64(self.word(word * 8), 0);
            (0..64).filter(move |bit| found >> bit & 1 != 0).map(move |bit| word * 64 + bit)
        };
        let vectors = (0..4).flat_map(vectors).collect();
        let control = self.memory.read64(self.word(CONTROL));
        self.memory.write64(self.word(CONTROL), control & !ON);
        (vectors, control & ON != 0)
    }

    fn posting(self: &Arc<Self>, vector: u8) -> Posting {
        Posting { descriptor: Arc::clone(self) as Arc<dyn PostedInterrupts>, vector }
    }

    fn raised(&self, vector: u32, notification: Option<(u32, u32)>) -> Result<Raised, Code> {
        Ok(Raised::Posted { descriptor: self.address().0, vector, notification })
    }
}

impl PostedInterrupts for Descriptor {
    fn address(&self) -> HostPhys {
        HostPhys(self.page.0 + OFFSET)
    }
}

impl core::fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "descriptor in {}", self.page)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // A second panic would hide the first.
        if !std::thread::panicking() {
            self.memory.free(self.page, 1);
        }
    }
}

const TARGET: HostVector = HostVector { vector: 0x41, cpu: 0x1_0002 };
const TO_TARGET: Result<Raised, Code> = Ok(Raised::Vector { destination: 0x1_0002, vector: 0x41 });
const NOTIFICATION: Option<(u32, u32)> = Some((0x1_0003, 0xf2));
/// Descriptor type of an invalidation of the interrupt entry cache.
const INTERRUPT_ENTRY_CACHE: u64 = 4;

/// Units that see the tables in different ways.
const UNITS: [(u64, u64); 4] = [
    (CAP | CAP_PI, ECAP),
    (CAP | CAP_PI, ECAP | ECAP_C),
    (CAP | CAP_PI | CAP_RWBF, ECAP | ECAP_C),
    (CAP | CAP_PI | CAP_CM, ECAP),
];

fn mapped(machine: &VtdRig) -> RemappedInterrupt {
    machine.vtd.map_interrupt(DEVICE, TARGET).unwrap()
}

fn sent(machine: &VtdRig, interrupt: RemappedInterrupt) -> Result<Raised, Code> {
    machine.unit.message(DEVICE.rid, interrupt.message.address, interrupt.message.data)
}

#[test]
fn interrupts_go_to_guests_and_back() {
    for (cap, ecap) in UNITS {
        let machine = VtdRig::with(cap, ecap);
        assert!(machine.vtd.can_post(DEVICE));
        let [first, second] = [(); 2].map(|()| Descriptor::new(&machine.memory));
        let [interrupt, other] = [mapped(&machine), mapped(&machine)];
        assert_eq!(sent(&machine, interrupt), TO_TARGET);
        let redirect = |to: Delivery<'_>| machine.vtd.redirect(interrupt.handle, to).unwrap();

        redirect(Delivery::Guest(&first.posting(0x61)));
        assert_eq!(sent(&machine, interrupt), first.raised(0x61, NOTIFICATION));
        assert_eq!(sent(&machine, interrupt), first.raised(0x61, None), "told once");
        assert_eq!(sent(&machine, other), TO_TARGET, "a neighbour stays as it is");
        let of_another = machine.unit.message(DEVICE.rid + 1, interrupt.message.address, 0);
        assert_eq!(of_another, Err(0x26));
        assert_eq!(first.take(), (vec![0x61], true));

        redirect(Delivery::Guest(&second.posting(0xff)));
        // Its processor is not to be told.
        machine.memory.write64(second.word(CONTROL), NOTIFY | SN);
        assert_eq!(sent(&machine, interrupt), second.raised(0xff, None));
        assert_eq!((first.take(), second.take()), ((vec![], false), (vec![0xff], false)));

        redirect(Delivery::Host(HostVector { vector: 0x42, cpu: 7 }));
        assert_eq!(sent(&machine, interrupt), Ok(Raised::Vector { destination: 7, vector: 0x42 }));
        redirect(Delivery::Guest(&first.posting(16)));
        assert_eq!(sent(&machine, interrupt), first.raised(16, NOTIFICATION));

        machine.vtd.unmap_interrupt(interrupt.handle).unwrap();
        assert_eq!(sent(&machine, interrupt), Err(0x22));
        assert!(machine.vtd.redirect(interrupt.handle, Delivery::Host(TARGET)).is_err());
        assert_eq!([Arc::strong_count(&first), Arc::strong_count(&second)], [1, 1], "nobody writes there");
        assert_eq!(sent(&machine, other), TO_TARGET);
    }
}

/// The unit reads the entry while it changes, in whatever state of its cache.
#[test]
fn messages_at_any_moment_of_a_redirect_raise_the_one_or_the_other() {
    for (cap, ecap) in UNITS {
        let machine = VtdRig::with(cap, ecap);
        let [first, second] = [(); 2].map(|()| Descriptor::new(&machine.memory));
        let interrupt = mapped(&machine);
        sent(&machine, interrupt).unwrap();
        let (first_one, second_one) = (first.posting(0x61), second.posting(0x9e));
        let ways = [
            Delivery::Host(TARGET),
            Delivery::Guest(&first_one),
            Delivery::Guest(&second_one),
            Delivery::Host(HostVector { vector: 0x42, cpu: 7 }),
        ];
        let without_notification = |raised| match raised {
            Ok(Raised::Posted { descriptor, vector, .. }) => {
                Ok(Raised::Posted { descriptor, vector, notification: None })
            }
            other => other,
        };
        let outcomes = [
            TO_TARGET,
            first.raised(0x61, None),
            second.raised(0x9e, None),
            Ok(Raised::Vector { destination: 7, vector: 0x42 }),
        ];
        let noisy = vec![(DEVICE.rid, interrupt.message.address)];
        let mut at = 0;
        for to in [1, 2, 3, 0, 2, 0, 3, 1, 0] {
            machine.unit.state.lock().unwrap().noisy_messages = noisy.clone();
            machine.vtd.redirect(interrupt.handle, ways[to]).unwrap();
            let raised = {
                let mut state = machine.unit.state.lock().unwrap();
                state.noisy_messages.clear();
                std::mem::take(&mut state.raised)
            };
            assert!(raised.len() > 4, "{raised:?}");
            let raised = Vec::from_iter(raised.into_iter().map(without_notification));
            assert!(
                raised.iter().all(|one| [outcomes[at], outcomes[to]].contains(one)),
                "{at} {to} {raised:x?}"
            );
            assert!(raised.contains(&outcomes[at]) && raised.contains(&outcomes[to]), "{raised:x?}");
            assert_eq!(without_notification(sent(&machine, interrupt)), outcomes[to]);
            at = to;
        }
    }
}

/// What the unit may remember stays held until it has confirmed that it does not.
#[test]
fn a_redirect_that_is_not_confirmed_can_be_made_up_for() {
    let machine = VtdRig::with(CAP | CAP_PI, ECAP);
    let interrupt = mapped(&machine);
    let [first, second] = [0x61, 0x62].map(|vector| Descriptor::new(&machine.memory).posting(vector));
    machine.vtd.redirect(interrupt.handle, Delivery::Guest(&first)).unwrap();
    let [_, before] = [(); 2].map(|()| sent(&machine, interrupt));
    let descriptor = first.descriptor.address().0;
    assert_eq!(before, Ok(Raised::Posted { descriptor, vector: 0x61, notification: None }));
    let used = machine.memory.used();

    let refuse = || machine.unit.state.lock().unwrap().refuse = Some((INTERRUPT_ENTRY_CACHE, 1));
    for to in [Delivery::Guest(&second), Delivery::Guest(&first), Delivery::Guest(&second)] {
        refuse();
        let refusal = machine.vtd.redirect(interrupt.handle, to).unwrap_err();
        assert!(refusal.why.contains("refused descriptor"), "{refusal}");
    }
    assert_eq!((Arc::strong_count(&first.descriptor), Arc::strong_count(&second.descriptor)), (2, 2));
    drop((first, second));
    assert_eq!(sent(&machine, interrupt), before, "the unit does remember");
    assert_eq!(machine.memory.used(), used);
    refuse();
    machine.vtd.unmap_interrupt(interrupt.handle).unwrap_err();
    assert_eq!((sent(&machine, interrupt), machine.memory.used()), (before, used));

    machine.vtd.redirect(interrupt.handle, Delivery::Host(TARGET)).unwrap();
    assert_eq!((sent(&machine, interrupt), machine.memory.used()), (TO_TARGET, used - 2));
    let third = Descriptor::new(&machine.memory).posting(0x63);
    machine.vtd.redirect(interrupt.handle, Delivery::Guest(&third)).unwrap();
    drop(third);
    refuse();
    machine.vtd.unmap_interrupt(interrupt.handle).unwrap_err();
    assert_eq!(machine.memory.used(), used - 1);
    machine.vtd.unmap_interrupt(interrupt.handle).unwrap();
    assert_eq!((sent(&machine, interrupt), machine.memory.used()), (Err(0x22), used - 2));
}

#[test]
fn what_cannot_be_redirected_stays_as_it_is() {
    let machine = VtdRig::with(CAP | CAP_PI, ECAP);
    let interrupt = mapped(&machine);
    let descriptor = Descriptor::new(&machine.memory);
    let refused = |handle, to: Delivery<'_>| machine.vtd.redirect(handle, to).unwrap_err().to_string();
    for handle in [interrupt.handle + 1, 2048, 0x1_0000, u32::MAX] {
        let line = refused(handle, Delivery::Guest(&descriptor.posting(0x61)));
        assert!(line.contains("not in use"), "{line}");
    }
    let line = refused(interrupt.handle, Delivery::Guest(&descriptor.posting(15)));
    assert!(line.contains("vector 0xf"), "{line}");
    let beyond = HostVector { vector: 0x141, cpu: 0 };
    assert!(refused(interrupt.handle, Delivery::Host(beyond)).contains("0x141"));
    assert_eq!(sent(&machine, interrupt), TO_TARGET);
    assert_eq!(Arc::strong_count(&descriptor), 1);

    let machine = VtdRig::new();
    let interrupt = mapped(&machine);
    assert!(!machine.vtd.can_post(DEVICE));
    let line = machine.vtd.redirect(interrupt.handle, Delivery::Guest(&descriptor.posting(0x61)));
    assert!(line.unwrap_err().why.contains("CAP.PI"));
    assert_eq!(sent(&machine, interrupt), TO_TARGET);
    let elsewhere = HostVector { vector: 0x42, cpu: 7 };
    machine.vtd.redirect(interrupt.handle, Delivery::Host(elsewhere)).unwrap();
    assert_eq!(sent(&machine, interrupt), Ok(Raised::Vector { destination: 7, vector: 0x42 }));
}
