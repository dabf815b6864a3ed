/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bochs's processors as the instruction engine of a machine: all of them on
 * one thread. Memory, ports, interrupt controllers and time are the
 * machine's.
 *
 * Processors have numbers from 0 on, which are their APIC IDs, too. The
 * machine says everything through `struct machine`, which the engine calls
 * from within run() only; nothing here may be called by two threads at once.
 * tests/platform/patches has the same structures: `size` tells when they are
 * not.
 */
#ifndef PASIDON_ENGINE_H
#define PASIDON_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the machine does for its processors. `smm`: in system management mode. */
struct machine {
  uint32_t size; /* of this structure */
  uint32_t processors;
  uint32_t sockets, cores, threads; /* their product is `processors` */

  /* Where the page of that address is in this process, if it can be read and written there, and code fetched, without
   * asking; else NULL. It stays there until forget_translations(). */
  void *(*page)(unsigned processor, bool smm, uint64_t address);
  /* The same for code only; what is written there later by others than processors is told by forget_code(). */
  const void *(*code)(unsigned processor, bool smm, uint64_t address);
  /* Accesses within one page; a store of 64 bytes is one transaction. */
  void (*load)(unsigned processor, bool smm, uint64_t address, unsigned size, void *data);
  void (*store)(unsigned processor, bool smm, uint64_t address, unsigned size, const void *data);
  /* A deferrable write of 64 bytes, in one transaction; false: it is to be tried again. */
  bool (*enqueue)(unsigned processor, bool smm, uint64_t address, const void *data);
  uint32_t (*in)(unsigned processor, uint16_t port, unsigned size);
  void (*out)(unsigned processor, uint16_t port, unsigned size, uint32_t value);

  /* The APIC's MSRs in x2APIC mode, from 800h on; false: #GP. */
  bool (*read_apic)(unsigned processor, uint32_t msr, uint64_t *value);
  bool (*write_apic)(unsigned processor, uint32_t msr, uint64_t value);
  uint64_t (*apic_base)(unsigned processor);
  void (*set_apic_base)(unsigned processor, uint64_t value);
  uint8_t (*task_priority)(unsigned processor);
  void (*set_task_priority)(unsigned processor, uint8_t priority);
  /* The processor takes the interrupt that interrupt() told of; returns its vector. */
  uint8_t (*acknowledge)(unsigned processor);
  /* The processor was initialized by INIT. */
  void (*initialized)(unsigned processor);

  /* That interrupt of the processor's own timer is requested. */
  void (*raise)(unsigned processor, uint8_t vector);

  /* Nanoseconds. A tick of the time-stamp counters is one. */
  uint64_t (*now)(void);
  /* The processor is to run again then, even if it has halted. */
  void (*wake_at)(unsigned processor, uint64_t when);
  /* What guests did wrong, in words. */
  void (*said)(const char *words);
  /* The engine cannot go on. Does not return. */
  void (*broken)(const char *words);
};

/* What run() returns. */
enum activity {
  ACTIVITY_RUNS = 0,
  ACTIVITY_HALTED = 1,          /* until an interrupt, if it is enabled, or another event */
  ACTIVITY_HALTED_DISABLED = 2, /* the same, with interrupts disabled */
  ACTIVITY_WAITS_FOR_SIPI = 3,
  ACTIVITY_SHUTDOWN = 4, /* after a triple fault: the machine is to be reset */
};

/* Bits of `flags` are those of the second half of a descriptor. */
struct segment_state {
  uint64_t base;
  uint32_t limit, flags;
  uint16_t selector;
};

/* For debuggers. */
struct processor_state {
  uint64_t registers[16], rip, rflags;
  struct segment_state segments[6], ldt, task; /* ES, CS, SS, DS, FS, GS */
  uint64_t gdt_base, idt_base;
  uint32_t gdt_limit, idt_limit;
  uint64_t cr0, cr2, cr3, cr4, efer;
};

/* What the engine does for the machine. */
struct engine {
  uint32_t size; /* of this structure */

  /* Makes the processors of a model, each after a reset. Once. Returns NULL, or words about why not. */
  const char *(*open)(const struct machine *machine, const char *model);
  void (*reset)(unsigned processor);
  /* Runs for about so many instructions, or until *stop. */
  enum activity (*run)(unsigned processor, uint64_t instructions, const volatile bool *stop);
  /* The line of the interrupt controller. */
  void (*interrupt)(unsigned processor, bool on);
  void (*nmi)(unsigned processor);
  void (*smi)(unsigned processor);
  void (*init)(unsigned processor);
  void (*sipi)(unsigned processor, uint8_t vector);
  void (*enable_a20)(bool on);
  /* Addresses may lead elsewhere from now on. */
  void (*forget_translations)(void);
  /* Others than processors have written where there was code. */
  void (*forget_code)(void);
  void (*state)(unsigned processor, struct processor_state *state);
};

/* The one symbol of the library. */
__attribute__((visibility("default"))) extern const struct engine pasidon_engine;

#ifdef __cplusplus
}
#endif
#endif
