/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Bochs's processor as a library: one processor in one process. Its physical
 * memory is the memory of that process: a physical address is a pointer.
 *
 * Nothing here may be called by two threads at once, nor while run() runs.
 */
#ifndef PASIDON_SHIM_H
#define PASIDON_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PASIDON_API __attribute__((visibility("default")))

/* Ports of the processor's that lead to this library. */
enum {
  PORT_FINISH = 0xf4,      /* any write: the run is over */
  PORT_EXCEPTION = 0xf5,   /* any write: it ends because of an exception; RDI: where its vector, error code and RIP are */
  PORT_SYSTEM_CALL = 0xf6, /* any write: the system call that the registers say is carried out */
};

/* Why a run ended. */
enum {
  STOP_FINISHED = 0,
  STOP_LIMIT = 1,     /* after the instructions that it was given */
  STOP_EXCEPTION = 2, /* the code met an exception: `what` is its vector, `more` its error code */
  STOP_NOTHING = 3,   /* an access where this process has no memory: `what` is the address, `more` an `enum access_kind` */
  STOP_SHUTDOWN = 4,  /* a triple fault of code that is not a guest */
  STOP_BROKEN = 5,    /* Bochs gave up: words() has what it said */
};

enum access_kind { ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_FETCH = 2 };

struct stop {
  uint64_t why, what, more, rip;
};

/* What 64-bit code at privilege level 0 needs. All segments are flat: code is at selector 08h, data at 10h, the task
 * state segment at 18h. */
struct host {
  uint64_t gdt, gdt_limit, idt, idt_limit, tss, tss_limit;
  uint64_t fs_base;
  uint64_t system_call; /* where SYSCALL goes */
};

/* An access to a device's page. */
struct access_seen {
  uint64_t address;
  uint32_t size;
  uint32_t write;
  uint8_t data[64];
};

/* Makes the processor anew, after a reset, of that model of Bochs's. Returns NULL, or words about why not. */
PASIDON_API const char *pasidon_new(const char *model, const char *features);
/* 64-bit mode at privilege level 0, with all memory of this process mapped where it is. */
PASIDON_API void pasidon_host_mode(const struct host *host);
/* Runs the function at `rip` until it stops, for so many instructions at most; an instruction and a tick of the
 * time-stamp counter are the same. */
PASIDON_API void pasidon_run(uint64_t rip, uint64_t rsp, uint64_t argument, uint64_t instructions, struct stop *stop);
/* After so many instructions, from now or from the start of the next run on, that interrupt is requested. */
PASIDON_API void pasidon_interrupt(uint8_t vector, uint64_t after);
/* The same for an NMI. */
PASIDON_API void pasidon_nmi(uint64_t after);
/* Whether an interrupt (1) or an NMI (2) was requested that the processor has not taken yet. */
PASIDON_API uint32_t pasidon_waiting(void);
/* Accesses to the page at `address` are recorded from now on; what is written is stored there, too. Enqueue stores are
 * accepted there, and nowhere else. */
PASIDON_API void pasidon_device(uint64_t address);
/* Copies at most `room` of the oldest recorded accesses and forgets those; returns how many. */
PASIDON_API size_t pasidon_accesses(struct access_seen *seen, size_t room);
/* What Bochs said about errors since the run began, a line each, and about those that end it. */
PASIDON_API const char *pasidon_words(void);

#ifdef __cplusplus
}
#endif
#endif
