// SPDX-License-Identifier: MIT OR Apache-2.0
//! The register sequence of Linux 6.1's `idxd` and `dmaengine` drivers, replayed against the vdev.

use super::model::{HANDLE_BASE, State};
use super::*;

const GENCAP: u64 = 0x10;
const WQCFG: u64 = 0x800;
const GRPCFG: u64 = 0x600;
const MISC: u16 = 0;
/// log2 of 2 MiB and of 32 descriptors, what Linux writes into a queue's limits.
const LINUX_LIMITS: u32 = 21 | 5 << 5;

impl Guest {
    /// A command with completion interrupt, as `idxd_cmd_exec` does it; returns CMDSTS.
    fn command(&mut self, code: u32, operand: u32) -> u32 {
        self.raised.clear();
        self.w32(0xa0, 1 << 31 | code << 20 | operand);
        assert_eq!(self.raised, [MISC], "completion interrupt of command {code}");
        let cause = self.r32(0x98);
        assert_eq!(cause, 2, "INTCAUSE after command {code}");
        self.w32(0x98, cause);
        assert_eq!(self.r32(0x98), 0);
        self.r32(0xa8)
    }

    /// A command without one, polled.
    fn polled(&mut self, code: u32, operand: u32) -> u32 {
        self.raised.clear();
        self.w32(0xa0, code << 20 | operand);
        assert!(self.raised.is_empty());
        assert_eq!(self.r32(0x98), 0, "INTCAUSE.CMD without a request");
        self.r32(0xa8)
    }

    fn probe(&mut self) {
        assert_eq!(self.r32(0x00), 0x100);
        assert_ne!(self.r32(0x90) & 3, 3, "a halted device is given up");
        assert_eq!(self.polled(5, 0), 0);
        assert_eq!(self.r32(0x90), 0);
        let gencap = self.r64(GENCAP);
        assert_eq!(gencap >> 31 & 1, 1, "configurable");
        assert_eq!(gencap >> 4 & 1, 1, "CMDCAP valid");
        assert_eq!((gencap >> 16 & 0x1f, gencap >> 21 & 0xf), (21, 10));
        assert_eq!(self.r32(0xb0), 0x7ffe);
        assert_eq!(self.r64(0x30) & 0xff, 1);
        assert_eq!(self.r64(0x38) & 0xff, 1);
        let wqcap = self.r64(0x20);
        assert_eq!(wqcap >> 16 & 0xff, 1);
        assert_eq!((wqcap >> 48 & 1, wqcap >> 49 & 1), (0, 1), "dedicated only");
        assert_eq!(self.r64(0x60) & 0xffff_ffff_ffff, 0x0004_0008_0006);
        assert_eq!(self.r64(0x68), 0, "no PERFMON");
        assert_eq!(self.r64(0x40) & 0x9, 0x9, "noop and memory move");
        let control = self.r32(0x88);
        self.w32(0x88, control | 3);
    }

    fn write_configuration(&mut self, size: u32, mode: u32) {
        let words = [size, 0, mode, LINUX_LIMITS, 0, 0, 0, 0];
        for (word, value) in (0u64..).zip(words) {
            let at = WQCFG + word * 4;
            let present = self.r32(at);
            self.w32(at, present & 0x1fff_fff0 & !0xff | value);
        }
        for (word, value) in [1, 0, 0, 0, 1].into_iter().enumerate() {
            self.w64(GRPCFG + word as u64 * 8, value);
        }
        self.w64(GRPCFG + 40, 1 | 1 << 3 | 96 << 20);
    }

    fn bind_device(&mut self, size: u32) {
        self.write_configuration(size, 1 | 10 << 4);
        assert_eq!(self.r32(0x90), 0);
        assert_eq!(self.command(1, 0), 0, "Enable Device");
        assert_eq!(self.r32(0x90), 1);
    }

    fn bind_queue(&mut self, size: u32) -> u32 {
        let mode = self.r32(WQCFG + 8);
        assert_eq!(mode >> 28 & 1, 0, "PASID_EN must read 0");
        self.w32(WQCFG + 8, mode | 1 << 29);
        self.write_configuration(size, 1 | 10 << 4 | 1 << 29);
        assert_eq!(self.command(6, 0), 0, "Enable WQ");
        let status = self.command(13, 1);
        assert_eq!(status & 0xff, 0, "Request Interrupt Handle");
        status >> 8 & 0xffff
    }

    fn unbind_queue(&mut self, handle: u32) {
        assert_eq!(self.command(8, 1), 0, "Drain WQ");
        assert_eq!(self.polled(14, handle), 0, "Release Interrupt Handle");
        self.w32(0x408, 0);
        assert_eq!(self.command(10, 1), 0, "Reset WQ");
    }

    fn unbind_device(&mut self) {
        assert_eq!(self.r32(0x90), 1);
        assert_eq!(self.command(2, 0), 0, "Disable Device");
        assert_eq!(self.r32(0x90), 0);
        assert_eq!(self.command(5, 0), 0, "Reset Device");
        let control = self.r32(0x88);
        self.w32(0x88, control | 3);
    }
}

fn assert_runs_with(state: &State, wq: usize, tag: u32) {
    assert!(state.queue_enabled(wq));
    let mode = state.mode(wq);
    assert_eq!(mode & 0xf, 1, "dedicated, no block on fault");
    assert_eq!(mode >> 28 & 3, 1, "PASID_EN, not privileged");
    assert_eq!(mode >> 8 & 0xf_ffff, tag);
    assert_eq!(state.msixperm[wq + 1], tag << 12 | 8);
    assert_eq!(state.gencfg >> 12 & 1, 1, "user-mode interrupts");
}

#[test]
fn bind_use_unbind_and_bind_again() {
    let (model, parent) = parent(&[Some(32)]);
    let mut guest = Guest::new(&parent, "alpha", Some(32), 77);
    let wq = usize::from(guest.vdev.interrupts()[0].physical) - 1;
    guest.probe();
    for _ in 0..3 {
        guest.bind_device(16);
        assert!(!model.state.lock().queue_enabled(wq), "not before Enable WQ");
        let handle = guest.bind_queue(16);
        assert_eq!(handle, u32::from(HANDLE_BASE) + wq as u32 + 1);
        assert_runs_with(&model.state.lock(), wq, 77);
        guest.unbind_queue(handle);
        assert!(!model.state.lock().queue_enabled(wq));
        assert_eq!(guest.r32(WQCFG), 16, "Reset WQ keeps the size");
        guest.unbind_device();
        assert_eq!(guest.r32(WQCFG), 0);
    }
}

#[test]
fn without_handles_in_hardware_the_handle_is_the_entry() {
    let model = Model::new(0x11fb);
    model.state.lock().cmdcap = 0x1ffe;
    let parent = try_parent(&model, &[], Options::default()).unwrap();
    let mut guest = Guest::new(&parent, "alpha", None, 3);
    guest.probe();
    guest.bind_device(16);
    let handle = guest.bind_queue(16);
    assert_eq!(handle, u32::from(guest.vdev.interrupts()[0].physical));
}

#[test]
fn a_module_reload_finds_a_fresh_device() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(8);
    guest.bind_queue(8);
    // The guest crashed and its next kernel starts with the reset of the probe.
    guest.probe();
    assert!(!model.state.lock().queue_enabled(0));
    guest.bind_device(8);
    guest.bind_queue(8);
    assert_runs_with(&model.state.lock(), 0, 5);
}

#[test]
fn commands_fail_as_on_hardware() {
    let (_, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    assert_eq!(guest.command(6, 0), 0x20, "Enable WQ while the device is off");
    assert_eq!(guest.command(2, 0), 0x31, "Disable Device while it is off");
    guest.write_configuration(17, 1);
    assert_eq!(guest.command(1, 0), 0x14, "more entries than allotted");
    guest.write_configuration(0, 1);
    assert_eq!(guest.command(1, 0), 0x16, "grouped without entries");
    guest.write_configuration(16, 1);
    guest.w64(GRPCFG + 32, 0);
    assert_eq!(guest.command(1, 0), 0x15, "no engine");
    guest.set_bus_master(false);
    assert_eq!(guest.command(1, 0), 0x12);
    guest.set_bus_master(true);
    guest.bind_device(16);
    assert_eq!(guest.command(1, 0), 0x10);
    for (mode, limits, error) in [
        (0, LINUX_LIMITS, 0x24),
        (1 | 2, LINUX_LIMITS, 0x25),
        (1 | 1 << 28 | 9 << 8, LINUX_LIMITS, 0x26),
        (1, 21, 0x27),
        (1, 21 | 11 << 5, 0x27),
        (1, 22 | 5 << 5, 0x28),
    ] {
        guest.w32(WQCFG + 8, mode);
        guest.w32(WQCFG + 12, limits);
        assert_eq!(guest.command(6, 0), error, "mode {mode:#x} limits {limits:#x}");
    }
    assert_eq!(guest.command(6, 1), 0x02, "another queue");
    assert_eq!(guest.command(7, 2), 0x02);
    assert_eq!(guest.command(10, 1 << 16 | 1), 0x02);
    assert_eq!(guest.command(7, 1), 0x32);
    assert_eq!(guest.command(13, 0), 0x41, "the misc vector has no handle");
    assert_eq!(guest.command(13, 2), 0x41);
    assert_eq!(guest.command(13, 1 << 16 | 1), 0x41, "no IMS");
    assert_eq!(guest.command(14, 9), 0x41);
    assert_eq!(guest.command(3, 1), 0x04, "operand where there is none");
    assert_eq!(guest.command(0x1f, 0), 0x01);
    guest.w32(WQCFG + 8, 1);
    guest.w32(WQCFG + 12, LINUX_LIMITS);
    assert_eq!(guest.command(6, 0), 0);
    assert_eq!(guest.command(6, 0), 0x21);
}

/// What `accel-config load-config` sets of a file that `save-config` wrote: the driver asks for the capability of each
/// before it takes even a 0.
#[test]
fn what_programs_set_to_zero_can_be_set() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    assert_eq!(guest.r64(GENCAP) & 1, 1, "block on fault");
    assert_eq!(guest.r64(0x20) >> 50 & 1, 1, "ATS control");
    assert_eq!(guest.r64(0x30) >> 8 & 0x3ff, 96 | 3 << 8, "read buffers, their control and limit");
    assert_eq!(guest.r64(GRPCFG + 40) >> 20 & 0xff, 96, "all allowed after a reset");
    // Limit, reserved, allowed.
    for (limit, reserved, allowed, error) in [
        (97, 0, 96, 0x18),
        (96, 97, 97, 0x18),
        (96, 10, 9, 0x18),
        (96, 0, 97, 0x18),
        (96, 0, 3, 0x18),
        (0, 96, 96, 0),
        (50, 8, 96, 0),
        (96, 0, 4, 0),
    ] {
        assert_eq!(guest.polled(5, 0), 0);
        guest.write_configuration(16, 1);
        let present = guest.r32(0x80);
        guest.w32(0x80, present & !0xff | limit);
        guest.w64(GRPCFG + 40, 1 | 1 << 3 | 1 << 7 | reserved << 8 | allowed << 20);
        assert_eq!(guest.command(1, 0), error, "{limit} {reserved} {allowed}");
    }
    // Block on fault cannot work, since pages are never requested; what is said of ATS has no effect.
    guest.w32(WQCFG + 8, 1 | 2);
    assert_eq!(guest.command(6, 0), 0x25);
    guest.w32(WQCFG + 8, 1 | 4);
    assert_eq!(guest.r32(WQCFG + 8), 5);
    guest.w32(WQCFG + 12, 21 | 10 << 5);
    assert_eq!(guest.command(6, 0), 0);
    assert_runs_with(&model.state.lock(), 0, 5);
    assert_eq!(model.state.lock().wqcfg[0][3], 21 | 10 << 5, "batches of 1,024");
}

#[test]
fn configuration_is_read_only_while_in_use() {
    let (_, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    guest.w32(WQCFG, 3);
    assert_eq!(guest.r32(WQCFG), 16);
    guest.w64(GRPCFG, 0);
    assert_eq!(guest.r64(GRPCFG), 1);
    guest.bind_queue(16);
    let mode = guest.r32(WQCFG + 8);
    guest.w32(WQCFG + 8, 0);
    assert_eq!(guest.r32(WQCFG + 8), mode);
    guest.w32(WQCFG + 4, 7);
    assert_eq!(guest.r32(WQCFG + 4), 7, "the threshold can always be written");
}

#[test]
fn a_smaller_transfer_limit_of_the_guest_holds() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    guest.w32(WQCFG + 8, 1);
    guest.w32(WQCFG + 12, 12 | 2 << 5);
    assert_eq!(guest.command(6, 0), 0);
    assert_eq!(model.state.lock().wqcfg[0][3], 12 | 2 << 5);
}

#[test]
fn bus_mastering_off_halts_and_on_goes_on() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    guest.bind_queue(16);
    for _ in 0..2 {
        guest.raised.clear();
        guest.set_bus_master(false);
        assert_eq!(guest.raised, [MISC], "pended: it cannot be sent now");
        assert!(!model.state.lock().queue_enabled(0));
        assert_eq!(guest.r32(0x90), 3, "halted, software reset needed");
        assert_eq!(guest.r32(0x98), 1 | 1 << 4);
        assert_eq!(guest.r64(0xc0) >> 8 & 0xff, 0x51);
        assert_eq!(guest.command_error_while_halted(), 5);
        guest.set_bus_master(true);
        assert_runs_with(&model.state.lock(), 0, 5);
        assert_eq!((guest.r32(0x90), guest.r32(WQCFG + 24) >> 30), (1, 1));
        // As idxd's thread: the error is read and acknowledged, and the device is not halted.
        let cause = guest.r32(0x98);
        assert_eq!(cause, 1, "the halt is over");
        guest.w32(0x98, cause);
        guest.w64(0xc0, 3);
        assert_eq!(guest.r64(0xc0) & 3, 0);
    }
    let handle = u32::from(HANDLE_BASE) + 1;
    guest.unbind_queue(handle);
    guest.unbind_device();
}

#[test]
fn a_device_left_enabled_without_bus_mastering_is_probed() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    guest.bind_queue(16);
    // A driver in user space died under uio_pci_generic. Linux turns bus mastering on, then idxd looks.
    guest.set_bus_master(false);
    guest.set_bus_master(true);
    guest.probe();
    assert!(!model.state.lock().queue_enabled(0));
    guest.bind_device(16);
    guest.bind_queue(16);
    assert_runs_with(&model.state.lock(), 0, 5);
}

#[test]
fn what_is_reset_while_bus_mastering_is_off_stays_disabled() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    let reset: [&dyn Fn(&mut Guest); 2] = [&|guest| assert_eq!(guest.command_in_halt(5), 0), &|guest| {
        guest.vdev.reset().unwrap();
    }];
    for reset in reset {
        guest.probe();
        guest.bind_device(16);
        guest.bind_queue(16);
        guest.set_bus_master(false);
        reset(&mut guest);
        guest.set_bus_master(true);
        assert!(!model.state.lock().queue_enabled(0));
        assert_eq!(guest.r32(0x90), 0);
    }
}

#[test]
fn a_halt_that_something_else_needs_outlasts_bus_mastering() {
    let (model, parent) = parent(&[]);
    // The queue is changed meanwhile so that it may not be enabled; the device is reset; the device halts.
    let meanwhile: [&dyn Fn(&mut Guest); 3] =
        [&|guest| guest.w32(WQCFG + 8, 0), &|_| recover(&parent).unwrap(), &|_| {
            model.state.lock().gensts = 3
        }];
    for meanwhile in meanwhile {
        let mut guest = Guest::new(&parent, "alpha", None, 5);
        let wq = usize::from(guest.vdev.interrupts()[0].physical) - 1;
        guest.probe();
        guest.bind_device(16);
        guest.bind_queue(16);
        guest.set_bus_master(false);
        meanwhile(&mut guest);
        guest.set_bus_master(true);
        assert_eq!(guest.r32(0x90) & 3, 3);
        assert!(!model.state.lock().queue_enabled(wq));
    }
}

impl Guest {
    fn command_error_while_halted(&mut self) -> u32 {
        self.command_in_halt(2)
    }

    fn command_in_halt(&mut self, code: u32) -> u32 {
        self.w32(0xa0, code << 20);
        self.r32(0xa8)
    }
}

#[test]
fn what_remains_of_a_vdev_lets_a_driver_finish() {
    let (_, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    let handle = guest.bind_queue(16);
    let capabilities: Vec<u64> = (0..0x80).step_by(8).map(|at| guest.r64(at)).collect();
    let mut remains = guest.vdev.remains(&mut |_| {});
    let mut raised = Vec::new();
    for (at, value) in (0..0x80u64).step_by(8).zip(capabilities) {
        assert_eq!(remains.read(0, at, 8), value, "register {at:#x}");
    }
    let state = remains.read(0, 0x90, 4);
    assert_eq!((state & 3, state >> 2), (3, 3), "halted, and no reset of the guest's helps");
    assert_eq!(remains.read(0, WQCFG + 24, 4) >> 30, 0, "the queue is disabled");
    // As idxd takes its queue back: Release Interrupt Handle is polled.
    remains.write(0, 0xa0, 4, u64::from(14 << 20 | handle), &mut |vector| raised.push(vector));
    assert_eq!(remains.read(0, 0xa8, 4), 5, "not active, refused as halted");
    assert!(raised.is_empty());
    // A command that was on its way when the slice went: its end is interrupted for.
    remains.write(0, 0xa0, 4, 1 << 31 | 2 << 20, &mut |vector| raised.push(vector));
    assert_eq!((raised.as_slice(), remains.read(0, 0x98, 4)), ([MISC].as_slice(), 2));
    remains.write(0, 0x98, 4, 2, &mut |_| {});
    assert_eq!(remains.read(0, 0x98, 4), 0, "the handler's loop ends");
    assert_eq!(remains.read(2, 0x1000, 8), 0);
}

#[test]
fn a_function_reset_clears_everything_and_keeps_the_tag() {
    let (model, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    guest.bind_queue(16);
    guest.vdev.reset().unwrap();
    assert!(!model.state.lock().queue_enabled(0));
    assert_eq!((guest.r32(0x90), guest.r32(0x98), guest.r32(0xa8)), (0, 0, 0));
    guest.set_bus_master(true);
    guest.probe();
    guest.bind_device(16);
    guest.bind_queue(16);
    assert_runs_with(&model.state.lock(), 0, 5);
}

#[test]
fn repeated_dword_reads_of_the_queue_table_match_wide_ones() {
    let (_, parent) = parent(&[]);
    let mut guest = Guest::new(&parent, "alpha", None, 5);
    guest.probe();
    guest.bind_device(16);
    for at in (WQCFG..WQCFG + 32).step_by(8) {
        let wide = guest.r64(at);
        assert_eq!(wide, u64::from(guest.r32(at)) | u64::from(guest.r32(at + 4)) << 32);
        for byte in 0..8 {
            assert_eq!(guest.vdev.read(0, at + byte, 1), wide >> (byte * 8) & 0xff);
        }
    }
}
