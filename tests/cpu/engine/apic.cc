// SPDX-License-Identifier: LGPL-2.1-or-later
// The local APIC that Bochs's processor speaks to: the machine's. What Bochs has in its own besides, the timers of the
// processor, is here as well.

#include "processors.h"

static const uint32_t FIRST_MSR = 0x800, LVT_TIMER_MSR = 0x832;
static const uint64_t LVT_TIMER = 0x320;
static const uint32_t LVT_MASKED = 1 << 16, LVT_MODE = 3 << 17, LVT_TSC_DEADLINE = 2 << 17, LVT_VECTOR = 0xff;

bx_local_apic_c::bx_local_apic_c(BX_CPU_C *cpu, unsigned id)
  : base_addr(BX_LAPIC_BASE_ADDR), mode(BX_APIC_XAPIC_MODE), xapic(true), apic_id(id), task_priority(0),
    ticksInitial(0), cpu(cpu), INTR(false)
{
  timer_handle = bx_pc_system.register_timer_ticks(this, periodic_smf, id, false, false, "deadline");
  vmx_timer_handle = bx_pc_system.register_timer_ticks(this, vmx_preemption_timer_expired, id, false, false, "vmx");
  mwaitx_timer_handle = bx_pc_system.register_timer_ticks(this, mwaitx_timer_expired, id, false, false, "mwaitx");
  vmx_preemption_timer_rate = VMX_MISC_PREEMPTION_TIMER_RATE;
  vmx_timer_active = mwaitx_timer_active = timer_active = false;
}

void bx_local_apic_c::reset(unsigned type)
{
  bx_pc_system.deactivate_timer(timer_handle);
  ticksInitial = 0;
  deactivate_vmx_preemption_timer();
  deactivate_mwaitx_timer();
  task_priority = 0;
  if (type != BX_RESET_SOFTWARE) return;
  machine.initialized(cpu->bx_cpuid);
  resetting = RESET_INIT;
}

void bx_local_apic_c::register_state(bx_param_c *) {}
void bx_local_apic_c::enable_xapic_extensions(void) {}

/// Bochs has written its register, and with a reset the value that it has then; INIT leaves the machine's as it is.
void bx_local_apic_c::set_base(bx_phy_address)
{
  if (resetting == RESET_ALL) {
    mode = BX_APIC_XAPIC_MODE;
    base_addr = BX_LAPIC_BASE_ADDR;
    return;
  }
  if (resetting == RESET_NOTHING) machine.set_apic_base(cpu->bx_cpuid, cpu->msr.apicbase);
  resetting = RESET_NOTHING;
  cpu->msr.apicbase = machine.apic_base(cpu->bx_cpuid);
  mode = (cpu->msr.apicbase >> 10) & 3;
  base_addr = cpu->msr.apicbase & ~bx_phy_address(0xfff);
}

bool bx_local_apic_c::is_selected(bx_phy_address address)
{
  return mode == BX_APIC_XAPIC_MODE && (address & ~bx_phy_address(0xfff)) == base_addr;
}

void bx_local_apic_c::read(bx_phy_address address, void *data, unsigned size)
{
  machine.load(cpu->bx_cpuid, cpu->in_smm, address, size, data);
}

void bx_local_apic_c::write(bx_phy_address address, void *data, unsigned size)
{
  machine.store(cpu->bx_cpuid, cpu->in_smm, address, size, data);
  task_priority = machine.task_priority(cpu->bx_cpuid);
}

bool bx_local_apic_c::read_x2apic(unsigned msr, Bit64u *value)
{
  uint64_t read = 0;
  bool there = machine.read_apic(cpu->bx_cpuid, msr, &read);
  *value = read;
  return there;
}

bool bx_local_apic_c::write_x2apic(unsigned msr, Bit32u high, Bit32u low)
{
  bool there = machine.write_apic(cpu->bx_cpuid, msr, uint64_t(high) << 32 | low);
  task_priority = machine.task_priority(cpu->bx_cpuid);
  return there;
}

void bx_local_apic_c::set_tpr(Bit8u priority)
{
  machine.set_task_priority(cpu->bx_cpuid, priority);
  task_priority = priority;
}

Bit8u bx_local_apic_c::acknowledge_int(void) { return machine.acknowledge(cpu->bx_cpuid); }

void bx_local_apic_c::receive_EOI(Bit32u)
{
  Bit32u zero = 0;
  if (mode == BX_APIC_X2APIC_MODE)
    machine.write_apic(cpu->bx_cpuid, FIRST_MSR + (BX_LAPIC_EOI >> 4), 0);
  else
    machine.store(cpu->bx_cpuid, cpu->in_smm, base_addr + BX_LAPIC_EOI, sizeof zero, &zero);
}

void bx_local_apic_c::send_ipi(apic_dest_t, Bit32u)
{
  // Only notifications of user interrupts.
  machine.said("user interrupts do not reach other processors here");
}

// Bits in arrays of registers, for VMX's virtual APIC pages.

static Bit32u bit_of(unsigned vector) { return Bit32u(1) << (vector % 32); }
bool bx_local_apic_c::get_vector(const Bit32u *registers, unsigned vector)
{
  return (registers[vector / 32] & bit_of(vector)) != 0;
}
void bx_local_apic_c::set_vector(Bit32u *registers, unsigned vector) { registers[vector / 32] |= bit_of(vector); }
void bx_local_apic_c::clear_vector(Bit32u *registers, unsigned vector) { registers[vector / 32] &= ~bit_of(vector); }

int bx_local_apic_c::highest_priority_int(const Bit32u *registers) const
{
  for (int vector = 255; vector >= 0; vector--)
    if (get_vector(registers, vector)) return vector;
  return -1;
}

// The APIC's timer, where it waits for a value of the time-stamp counter. The machine has its other modes.

static uint32_t lvt_timer(BX_CPU_C *cpu, unsigned mode)
{
  uint64_t value = 0;
  if (mode == BX_APIC_X2APIC_MODE) {
    machine.read_apic(cpu->bx_cpuid, LVT_TIMER_MSR, &value);
    return uint32_t(value);
  }
  uint32_t lvt = LVT_MASKED;
  machine.load(cpu->bx_cpuid, cpu->in_smm, cpu->lapic->get_base() + LVT_TIMER, sizeof lvt, &lvt);
  return lvt;
}

Bit64u bx_local_apic_c::get_tsc_deadline(void)
{
  return (lvt_timer(cpu, mode) & LVT_MODE) == LVT_TSC_DEADLINE ? ticksInitial : 0;
}

void bx_local_apic_c::set_tsc_deadline(Bit64u deadline)
{
  if ((lvt_timer(cpu, mode) & LVT_MODE) != LVT_TSC_DEADLINE) return;
  bx_pc_system.deactivate_timer(timer_handle);
  ticksInitial = deadline;
  if (deadline == 0) return;
  Bit64u now = cpu->get_TSC();
  bx_pc_system.activate_timer_ticks(timer_handle, deadline > now ? deadline - now : 0, false);
}

void bx_local_apic_c::periodic_smf(void *apic) { ((bx_local_apic_c *)apic)->periodic(); }

void bx_local_apic_c::periodic(void)
{
  uint32_t lvt = lvt_timer(cpu, mode);
  ticksInitial = 0;
  if ((lvt & (LVT_MODE | LVT_MASKED)) == LVT_TSC_DEADLINE) machine.raise(cpu->bx_cpuid, lvt & LVT_VECTOR);
}

// VMX's preemption timer, and MWAITX's.

Bit32u bx_local_apic_c::read_vmx_preemption_timer(void)
{
  Bit64u passed = (bx_pc_system.time_ticks() >> vmx_preemption_timer_rate) -
                  (vmx_preemption_timer_initial >> vmx_preemption_timer_rate);
  return passed < vmx_preemption_timer_value ? Bit32u(vmx_preemption_timer_value - passed) : 0;
}

void bx_local_apic_c::set_vmx_preemption_timer(Bit32u value)
{
  vmx_preemption_timer_value = value;
  vmx_preemption_timer_initial = bx_pc_system.time_ticks();
  Bit64u end = ((vmx_preemption_timer_initial >> vmx_preemption_timer_rate) + value) << vmx_preemption_timer_rate;
  bx_pc_system.activate_timer_ticks(
    vmx_timer_handle, end > vmx_preemption_timer_initial ? end - vmx_preemption_timer_initial : 0, false);
  vmx_timer_active = true;
}

void bx_local_apic_c::deactivate_vmx_preemption_timer(void)
{
  bx_pc_system.deactivate_timer(vmx_timer_handle);
  vmx_timer_active = false;
}

void bx_local_apic_c::vmx_preemption_timer_expired(void *apic)
{
  bx_local_apic_c *own = (bx_local_apic_c *)apic;
  own->vmx_timer_active = false;
  own->cpu->signal_event(BX_EVENT_VMX_PREEMPTION_TIMER_EXPIRED);
}

void bx_local_apic_c::set_mwaitx_timer(Bit64u ticks)
{
  deactivate_mwaitx_timer();
  if (ticks == 0) return;
  bx_pc_system.activate_timer_ticks(mwaitx_timer_handle, ticks, false);
  mwaitx_timer_active = true;
}

void bx_local_apic_c::deactivate_mwaitx_timer(void)
{
  bx_pc_system.deactivate_timer(mwaitx_timer_handle);
  mwaitx_timer_active = false;
}

void bx_local_apic_c::mwaitx_timer_expired(void *apic)
{
  bx_local_apic_c *own = (bx_local_apic_c *)apic;
  own->mwaitx_timer_active = false;
  own->cpu->wakeup_monitor();
}
