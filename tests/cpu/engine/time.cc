// SPDX-License-Identifier: LGPL-2.1-or-later
// The clock and the timers of the processors: the machine's clock. Bochs counts instructions, and nobody asks it how
// many; what else a PC has in one place is here, too.

#include "processors.h"

#include <vector>

bx_pc_system_c bx_pc_system;

struct Timer {
  bx_timer_handler_t expired;
  void *owner;
  unsigned processor;
  bool active;
  /// In ticks.
  Bit64u at;
};

static std::vector<Timer> timers;
static const Bit64u NEVER = ~Bit64u(0);

/// Tells the machine when the next timer of that processor expires.
static void tell_machine(unsigned processor)
{
  if (resetting == RESET_ALL) return;
  Bit64u soonest = NEVER;
  for (const Timer &timer : timers)
    if (timer.processor == processor && timer.active) soonest = BX_MIN(soonest, timer.at);
  machine.wake_at(processor, soonest);
}

void expire_timers(unsigned processor)
{
  bool any = false;
  Bit64u now = bx_pc_system.time_ticks();
  for (Timer &timer : timers) {
    if (timer.processor != processor || !timer.active || timer.at > now) continue;
    timer.active = false;
    any = true;
    timer.expired(timer.owner);
  }
  if (any) tell_machine(processor);
}

bx_pc_system_c::bx_pc_system_c() { countdownEvent(); }

/// The processors that are reset together have the same time then.
Bit64u bx_pc_system_c::time_ticks() { return resetting == RESET_ALL ? 0 : machine.now(); }

/// More instructions have been counted than there is room for.
void bx_pc_system_c::countdownEvent(void) { currCountdown = currCountdownPeriod = Bit32u(1) << 31; }

/// `processor` is in the place of the first time, since no timer is active from the start on.
int bx_pc_system_c::register_timer_ticks(void *owner, bx_timer_handler_t expired, Bit64u processor, bool, bool,
                                         const char *)
{
  timers.push_back({ expired, owner, unsigned(processor), false, 0 });
  return int(timers.size()) - 1;
}

void bx_pc_system_c::activate_timer_ticks(unsigned number, Bit64u ticks, bool)
{
  Bit64u now = time_ticks();
  timers[number].at = ticks < NEVER - now ? now + ticks : NEVER - 1;
  timers[number].active = true;
  tell_machine(timers[number].processor);
}

void bx_pc_system_c::deactivate_timer(unsigned number)
{
  if (!timers[number].active) return;
  timers[number].active = false;
  tell_machine(timers[number].processor);
}

void bx_pc_system_c::set_enable_a20(bool on)
{
  enable_a20 = on;
  a20_mask = on ? ~bx_phy_address(0) : ~(bx_phy_address(1) << 20);
}

bool bx_pc_system_c::get_enable_a20(void) { return enable_a20; }

void bx_pc_system_c::invlpg(bx_address address)
{
  for (unsigned number = 0; number < bx_cpu_count; number++) BX_CPU(number)->TLB_invlpg(address);
}

/// After a triple fault, if a parameter asks for it; none does.
int bx_pc_system_c::Reset(unsigned) { return 0; }
