// SPDX-License-Identifier: LGPL-2.1-or-later
// The processors: made, run by turns, told of events, and shown to debuggers.

#include "processors.h"

#include "../common/parameters.h"
#include "iodev/iodev.h"
#include "param_names.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

struct machine machine;
Resetting resetting = RESET_ALL;

BX_CPU_C **bx_cpu_array;
bx_debug_t bx_dbg;
Bit8u bx_cpu_count;
Bit32u apic_id_mask = 0xff;
bool simulate_xapic = true;

/// What has to wait for the end of an instruction.
static struct {
  bool translations, code;
} forget;

/// The one that runs, and until how many instructions. What a longjmp of Bochs's comes back to must not be in registers.
static BX_CPU_C *running;
static uint64_t until;

// The log.

/// What Bochs said that ends the making of processors.
static std::string refused;

static void say(const char *kind, const char *format, va_list arguments)
{
  char words[1024];
  int used = snprintf(words, sizeof words, "%s", kind);
  vsnprintf(words + used, sizeof words - used, format, arguments);
  machine.said(words);
}

void logfunctions::error(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  say("", format, arguments);
  va_end(arguments);
}

/// After these Bochs can go on, with a result that is not what processors do.
void logfunctions::panic(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  if (running)
    say("unlike a processor: ", format, arguments);
  else {
    char words[1024];
    vsnprintf(words, sizeof words, format, arguments);
    refused = words;
  }
  va_end(arguments);
}

void logfunctions::fatal1(const char *format, ...)
{
  char words[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  machine.broken(words);
  abort();
}

// Ports.

void bx_devices_c::reset(unsigned) {}
void bx_devices_c::exit() {}
Bit32u bx_devices_c::inp(Bit16u port, unsigned size) { return machine.in(running->bx_cpuid, port, size); }
void bx_devices_c::outp(Bit16u port, Bit32u value, unsigned size)
{
  machine.out(running->bx_cpuid, port, size, value);
}

// How they are made.

/// A model of Bochs's, and what it has more or less here. Less: what waits for a store, since a store of a device would
/// not end it; user interrupts, which are not sent through the machine's APICs; and shadow stacks, for which Bochs takes
/// a page that is written while CR0.WP is clear, as firmware does.
struct Model {
  const char *name, *more, *fewer;
  /// MSRs that Bochs lacks read as zero, and what is written to them is lost: firmware takes some for granted that all
  /// of Intel's processors have.
  bool intel;
};

static const Model MODELS[] = {
  { "ryzen", "x2apic,movdiri,movdir64b", "mwait,mwaitx", false },
  { "sapphire_rapids", "", "mwait,waitpkg,uintr,cet", true },
};

static const unsigned IA32_MISC_ENABLE = 0x1a0;
static const Bit64u FAST_STRINGS = 1;

/// What Intel's processors have, and system software counts on.
static void complete(BX_CPU_C *cpu)
{
  // Where they are off, Linux 6.1 with FSRM moves few bytes wrongly.
  cpu->msrs[IA32_MISC_ENABLE] = new MSR(IA32_MISC_ENABLE, FAST_STRINGS);
  // Both controls are there whether MWAIT is switched off or not, and KVM needs them.
  cpu->vmx_cap.vmx_proc_vmexec_ctrl_supported_bits |=
    VMX_VM_EXEC_CTRL1_MWAIT_VMEXIT | VMX_VM_EXEC_CTRL1_MONITOR_VMEXIT;
}

static const char *open(const struct machine *given, const char *name)
{
  if (given->size != sizeof machine) return "the machine was made for another version of the engine";
  if (given->processors < 1 || given->processors >= BX_MAX_SMP_THREADS_SUPPORTED) return "too many processors";
  machine = *given;
  const Model *model = nullptr;
  for (const Model &each : MODELS)
    if (strcmp(each.name, name) == 0) model = &each;
  if (!model || !choose_model(model->name, model->more, model->fewer)) return "no such model";
  set_parameter(BXPN_CPU_NPROCESSORS, machine.sockets);
  set_parameter(BXPN_CPU_NCORES, machine.cores);
  set_parameter(BXPN_CPU_NTHREADS, machine.threads);
  set_flag(BXPN_IGNORE_BAD_MSRS, model->intel);
  // Traces as long as there are.
  set_parameter(BXPN_SMP_QUANTUM, BX_MAX_TRACE_LENGTH);
  bx_pc_system.set_enable_a20(true);
  // Bochs has a processor that is alone wait in HLT for its own clock. One more is made, which nobody runs.
  bx_cpu_count = Bit8u(BX_MAX(machine.processors, 2u));
  bx_cpu_array = new BX_CPU_C *[bx_cpu_count];
  for (unsigned number = 0; number < bx_cpu_count; number++) {
    void *room = calloc(1, sizeof(BX_CPU_C) + 64);
    if (room == nullptr) return "no memory";
    // As aligned as its largest registers.
    room = (void *)((uintptr_t(room) + 63) & ~uintptr_t(63));
    bx_cpu_array[number] = new (room) BX_CPU_C(number);
    bx_cpu_array[number]->initialize();
    if (model->intel) complete(bx_cpu_array[number]);
    bx_cpu_array[number]->sanity_checks();
  }
  for (unsigned number = 0; number < bx_cpu_count; number++) bx_cpu_array[number]->reset(BX_RESET_HARDWARE);
  resetting = RESET_NOTHING;
  return refused.empty() ? open_exits() : refused.c_str();
}

static void reset(unsigned number)
{
  resetting = RESET_ALL;
  bx_cpu_array[number]->reset(BX_RESET_HARDWARE);
  bx_cpu_array[number]->TLB_flush();
  resetting = RESET_NOTHING;
}

// How they run.

static void forget_now()
{
  if (forget.translations || forget.code) {
    // A page that was code before is asked for again.
    forget_pages();
    for (unsigned number = 0; number < bx_cpu_count; number++) {
      bx_cpu_array[number]->TLB_flush();
      bx_cpu_array[number]->invalidate_prefetch_q();
    }
  }
  if (forget.code) flushICaches();
  forget = {};
}

/// At the end of the trace, if one runs.
static void end_trace()
{
  if (running) running->async_event |= BX_ASYNC_EVENT_STOP_TRACE;
}

static enum activity activity_of(BX_CPU_C *cpu)
{
  switch (cpu->activity_state) {
    case BX_CPU_C::BX_ACTIVITY_STATE_ACTIVE: return ACTIVITY_RUNS;
    case BX_CPU_C::BX_ACTIVITY_STATE_SHUTDOWN: return ACTIVITY_SHUTDOWN;
    case BX_CPU_C::BX_ACTIVITY_STATE_WAIT_FOR_SIPI: return ACTIVITY_WAITS_FOR_SIPI;
    case BX_CPU_C::BX_ACTIVITY_STATE_MWAIT_IF: return ACTIVITY_HALTED;
    default: return cpu->get_IF() ? ACTIVITY_HALTED : ACTIVITY_HALTED_DISABLED;
  }
}

static enum activity run(unsigned number, uint64_t instructions, const volatile bool *stop)
{
  forget_now();
  running = bx_cpu_array[number];
  until = running->icount + instructions;
  expire_timers(number);
  if (setjmp(BX_CPU_C::jmp_buf_env)) {
    // From an exception, or an exit of a guest.
    running->icount++;
  }
  if (exits_are_counted) look_for_exit(running);
  running->prev_rip = running->gen_reg[BX_64BIT_REG_RIP].rrx;
  running->speculative_rsp = false;
  do {
    running->cpu_run_trace();
    if (exits_are_counted) look_for_exit(running);
    forget_now();
  } while (running->icount < until && !*stop && running->activity_state == BX_CPU_C::BX_ACTIVITY_STATE_ACTIVE);
  enum activity activity = activity_of(running);
  running = nullptr;
  return activity;
}

// What they are told of.

static void interrupt(unsigned number, bool on)
{
  if (on)
    bx_cpu_array[number]->signal_event(BX_EVENT_PENDING_LAPIC_INTR);
  else
    bx_cpu_array[number]->clear_event(BX_EVENT_PENDING_LAPIC_INTR);
}

static void nmi(unsigned number) { bx_cpu_array[number]->deliver_NMI(); }
static void smi(unsigned number) { bx_cpu_array[number]->deliver_SMI(); }
static void init(unsigned number) { bx_cpu_array[number]->deliver_INIT(); }
static void sipi(unsigned number, uint8_t vector)
{
  running = bx_cpu_array[number];
  // In a guest of VMX it is an exit, which jumps.
  if (setjmp(BX_CPU_C::jmp_buf_env) == 0) running->deliver_SIPI(vector);
  running = nullptr;
}

static void enable_a20(bool on)
{
  if (on == bx_pc_system.get_enable_a20()) return;
  bx_pc_system.set_enable_a20(on);
  forget.translations = true;
  end_trace();
}

static void forget_translations(void)
{
  forget.translations = true;
  end_trace();
}

static void forget_code(void)
{
  forget.code = true;
  end_trace();
}

// What debuggers see.

static void show(struct segment_state *shown, const bx_selector_t &selector, const bx_descriptor_t &cache)
{
  shown->selector = selector.value;
  shown->base = cache.u.segment.base;
  shown->limit = cache.u.segment.limit_scaled;
  shown->flags = cache.type << 8 | cache.segment << 12 | cache.dpl << 13 | cache.p << 15;
  if (cache.segment)
    shown->flags |= cache.u.segment.avl << 20 | cache.u.segment.l << 21 | cache.u.segment.d_b << 22;
  shown->flags |= Bit32u(cache.u.segment.g) << 23;
}

static void state(unsigned number, struct processor_state *shown)
{
  BX_CPU_C *cpu = bx_cpu_array[number];
  for (unsigned each = 0; each < 16; each++) shown->registers[each] = cpu->gen_reg[each].rrx;
  shown->rip = cpu->gen_reg[BX_64BIT_REG_RIP].rrx;
  shown->rflags = cpu->read_eflags();
  for (unsigned each = 0; each < 6; each++)
    show(&shown->segments[each], cpu->sregs[each].selector, cpu->sregs[each].cache);
  show(&shown->ldt, cpu->ldtr.selector, cpu->ldtr.cache);
  show(&shown->task, cpu->tr.selector, cpu->tr.cache);
  shown->gdt_base = cpu->gdtr.base;
  shown->gdt_limit = cpu->gdtr.limit;
  shown->idt_base = cpu->idtr.base;
  shown->idt_limit = cpu->idtr.limit;
  shown->cr0 = cpu->cr0.get32();
  shown->cr2 = cpu->cr2;
  shown->cr3 = cpu->cr3;
  shown->cr4 = cpu->cr4.get32();
  shown->efer = cpu->efer.get32();
}

const struct engine pasidon_engine = {
  sizeof(struct engine), open, reset, run,        interrupt,           nmi,
  smi,                   init, sipi,  enable_a20, forget_translations, forget_code,
  state,
};
