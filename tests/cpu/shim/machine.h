// SPDX-License-Identifier: LGPL-2.1-or-later
// What this library keeps beside Bochs's processor.
#ifndef PASIDON_MACHINE_H
#define PASIDON_MACHINE_H

#define NEED_CPU_REG_SHORTCUTS 1
#include "bochs.h"
#include "cpu/cpu.h"
#include "cpu/apic.h"
#include "cpu/icache.h"
#include "memory/memory-bochs.h"
#include "gui/siminterface.h"
#include "pc_system.h"
#undef LOG_THIS
#define LOG_THIS genlog->

#include "shim.h"

#include <deque>
#include <set>
#include <string>

/// Thrown where the processor cannot go on; the machine says why.
struct Ended {};

struct Machine {
  stop ended = {};
  std::string words;
  std::set<uint64_t> devices;
  std::deque<access_seen> seen;
  std::deque<Bit8u> interrupts;

  /// Makes the parameters of a model; false where there is none of that name.
  bool choose(const char *model, const char *features);
  /// What is mapped in this process may have changed.
  void forget_ranges();
  void say(const std::string &line);
  /// The run is over after this instruction. The first reason counts.
  void end(uint64_t why, uint64_t what = 0, uint64_t more = 0);
  /// The processor writes to that port.
  void port(Bit16u port);
  /// The processor takes the oldest interrupt.
  Bit8u acknowledge();
};

extern Machine machine;

#endif
