// SPDX-License-Identifier: LGPL-2.1-or-later
// What the parts of this library share.
#ifndef PASIDON_PROCESSORS_H
#define PASIDON_PROCESSORS_H

#define NEED_CPU_REG_SHORTCUTS 1
#include "bochs.h"
#include "cpu/cpu.h"
#include "cpu/apic.h"
#include "cpu/icache.h"
#include "memory/memory-bochs.h"
#include "pc_system.h"
#undef LOG_THIS
#define LOG_THIS genlog->

#include "engine.h"

/// Around the processors; set once.
extern struct machine machine;

/// What a processor that is reset may ask the machine for.
enum Resetting {
  RESET_NOTHING, ///< anything: none is
  RESET_INIT,    ///< anything, but its APIC's base stays
  RESET_ALL,     ///< nothing: the machine is being made or reset, too
};
extern Resetting resetting;

/// Calls what is due on that processor.
void expire_timers(unsigned processor);
/// Forgets where pages are.
void forget_pages();

/// Whether look_for_exit() is to be called wherever a processor may have left a guest or entered one.
extern bool exits_are_counted;
/// Begins to count, if that is asked for. Returns null, or words about why not.
const char *open_exits();
void look_for_exit(BX_CPU_C *cpu);

#endif
