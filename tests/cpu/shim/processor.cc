// SPDX-License-Identifier: LGPL-2.1-or-later
// The processor: made, put into 64-bit mode, run, and told of interrupts.

#include "machine.h"

#include <sys/mman.h>
#include <new>

bx_pc_system_c bx_pc_system;
BX_CPU_C bx_cpu;
bx_debug_t bx_dbg;
Bit8u bx_cpu_count = 1;
Bit32u apic_id_mask = 0xff;
bool simulate_xapic = true;

// Timers of Bochs's: they count instructions.
static int limit_timer, interrupt_timer, nmi_timer;
static Bit8u interrupt_vector;
/// Timers that start with the next run; zero: none.
static uint64_t interrupt_after, nmi_after;

static const uint64_t NOT_RUNNING_YET = ~uint64_t(0);

void Machine::end(uint64_t why, uint64_t what, uint64_t more)
{
  if (ended.why == NOT_RUNNING_YET) {
    ended.why = why;
    ended.what = what;
    ended.more = more;
    ended.rip = bx_cpu.prev_rip;
  }
  bx_pc_system.kill_bochs_request = 1;
  bx_cpu.async_event = 1;
}

static void system_call()
{
  const bx_gen_reg_t *regs = bx_cpu.gen_reg;
  uint64_t result = regs[BX_64BIT_REG_RAX].rrx, rdi = regs[BX_64BIT_REG_RDI].rrx, rsi = regs[BX_64BIT_REG_RSI].rrx,
           rdx = regs[BX_64BIT_REG_RDX].rrx;
  // Nothing may be called between these and the instruction.
  register uint64_t r10 asm("r10") = regs[BX_64BIT_REG_R10].rrx;
  register uint64_t r8 asm("r8") = regs[BX_64BIT_REG_R8].rrx;
  register uint64_t r9 asm("r9") = regs[BX_64BIT_REG_R9].rrx;
  asm volatile("syscall"
               : "+a"(result)
               : "D"(rdi), "S"(rsi), "d"(rdx), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  bx_cpu.gen_reg[BX_64BIT_REG_RAX].rrx = result;
}

void Machine::port(Bit16u number)
{
  // A guest that reaches them is one whose ports are not intercepted.
  if (bx_cpu.in_svm_guest || bx_cpu.in_vmx_guest) return;
  switch (number) {
    case PORT_FINISH:
      return end(STOP_FINISHED);
    case PORT_EXCEPTION: {
      auto frame = (const uint64_t *)bx_cpu.gen_reg[BX_64BIT_REG_RDI].rrx;
      end(STOP_EXCEPTION, frame[0], frame[1]);
      ended.rip = frame[2];
      return;
    }
    case PORT_SYSTEM_CALL:
      return system_call();
  }
}

Bit8u Machine::acknowledge()
{
  Bit8u vector = interrupts.front();
  interrupts.pop_front();
  if (interrupts.empty()) bx_cpu.clear_INTR();
  return vector;
}

static void request_interrupt(void *)
{
  machine.interrupts.push_back(interrupt_vector);
  bx_cpu.raise_INTR();
}

static void request_nmi(void *) { bx_cpu.deliver_NMI(); }

static void limit_reached(void *)
{
  machine.end(bx_cpu.activity_state == BX_CPU_C::BX_ACTIVITY_STATE_SHUTDOWN ? STOP_SHUTDOWN : STOP_LIMIT);
}

const char *pasidon_new(const char *model, const char *features)
{
  machine = Machine();
  machine.ended.why = NOT_RUNNING_YET;
  // A thread's first exception allocates memory. In the middle of a run the program may have that lock.
  try {
    throw Ended();
  }
  catch (Ended) {
  }
  if (!machine.choose(model, features)) return "Bochs has no such model";
  try {
    // As they are before a program's first line.
    memset((void *)&bx_pc_system, 0, sizeof bx_pc_system);
    new (&bx_pc_system) bx_pc_system_c;
    bx_pc_system.initialize(1000000000);
    memset((void *)&bx_cpu, 0, sizeof bx_cpu);
    new (&bx_cpu) BX_CPU_C;
    bx_cpu.initialize();
    bx_cpu.sanity_checks();
    bx_cpu.reset(BX_RESET_HARDWARE);
  }
  catch (Ended) {
    return machine.words.c_str();
  }
  bx_pc_system.set_enable_a20(1);
  limit_timer = bx_pc_system.register_timer_ticks(nullptr, limit_reached, 1, false, false, "limit");
  interrupt_timer = bx_pc_system.register_timer_ticks(nullptr, request_interrupt, 1, false, false, "interrupt");
  nmi_timer = bx_pc_system.register_timer_ticks(nullptr, request_nmi, 1, false, false, "nmi");
  interrupt_after = nmi_after = 0;
  return nullptr;
}

// Identity map of the lower half by pages of 1 GiB. No code can be told by its faults that it is there.
static uint64_t identity_map()
{
  static uint64_t *tables;
  if (!tables) {
    const size_t pages = 257;
    tables = (uint64_t *)mmap(nullptr, 4096 * pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (tables == MAP_FAILED) abort();
    for (uint64_t high = 0; high < 256; high++) {
      uint64_t *lower = tables + 512 * (high + 1);
      tables[high] = (uint64_t)lower | 3;
      for (uint64_t low = 0; low < 512; low++) lower[low] = high << 39 | low << 30 | 0x83;
    }
  }
  return (uint64_t)tables;
}

static void flat(unsigned number, Bit16u selector, bool code)
{
  bx_segment_reg_t &segment = bx_cpu.sregs[number];
  parse_selector(selector, &segment.selector);
  bx_descriptor_t &cache = segment.cache;
  cache.valid = SegValidCache | SegAccessROK | SegAccessWOK | SegAccessROK4G | SegAccessWOK4G;
  cache.p = 1;
  cache.dpl = 0;
  cache.segment = 1;
  cache.type = code ? BX_CODE_EXEC_READ_ACCESSED : BX_DATA_READ_WRITE_ACCESSED;
  cache.u.segment.base = 0;
  cache.u.segment.limit_scaled = 0xffffffff;
  cache.u.segment.g = 1;
  cache.u.segment.d_b = !code;
  cache.u.segment.l = code;
  cache.u.segment.avl = 0;
}

void pasidon_host_mode(const host *host)
{
  const Bit16u CODE = 0x08, DATA = 0x10, TASK = 0x18;
  bx_cpu.cr0.set32(0x80010033);             // PG, WP, NE, ET, MP, PE
  bx_cpu.cr4.set32(0x000406e0);             // OSXSAVE, OSXMMEXCPT, OSFXSR, PGE, MCE, PAE
  bx_cpu.cr3 = identity_map();
  bx_cpu.efer.set32(0xd01);                 // NXE, LMA, LME, SCE
  bx_cpu.xcr0.set32(bx_cpu.xcr0_suppmask & 0xe7); // x87, SSE, AVX and AVX-512, where there is such
  bx_cpu.msr.mtrr_deftype = 0x806; // MTRRs on, write-back, as firmware leaves them
  bx_cpu.msr.star = Bit64u(CODE) << 32;
  bx_cpu.msr.lstar = host->system_call;
  bx_cpu.msr.fmask = 0;
  flat(BX_SEG_REG_CS, CODE, true);
  for (unsigned data : { BX_SEG_REG_SS, BX_SEG_REG_DS, BX_SEG_REG_ES, BX_SEG_REG_FS, BX_SEG_REG_GS })
    flat(data, DATA, false);
  bx_cpu.sregs[BX_SEG_REG_FS].cache.u.segment.base = host->fs_base;
  bx_cpu.gdtr.base = host->gdt;
  bx_cpu.gdtr.limit = host->gdt_limit;
  bx_cpu.idtr.base = host->idt;
  bx_cpu.idtr.limit = host->idt_limit;
  parse_selector(TASK, &bx_cpu.tr.selector);
  bx_descriptor_t &task = bx_cpu.tr.cache;
  task.valid = SegValidCache;
  task.p = 1;
  task.dpl = 0;
  task.segment = 0;
  task.type = BX_SYS_SEGMENT_BUSY_386_TSS;
  task.u.segment.base = host->tss;
  task.u.segment.limit_scaled = host->tss_limit;
  task.u.segment.g = 0;
  bx_cpu.handleCpuContextChange();
}

void pasidon_run(uint64_t rip, uint64_t rsp, uint64_t argument, uint64_t instructions, stop *stop)
{
  machine.ended = {};
  machine.ended.why = NOT_RUNNING_YET;
  machine.words.clear();
  machine.forget_ranges();
  bx_pc_system.kill_bochs_request = 0;
  // What it knows of memory may have changed since.
  flushICaches();
  bx_cpu.TLB_flush();
  bx_cpu.invalidate_prefetch_q();
  bx_cpu.invalidate_stack_cache();
  bx_cpu.gen_reg[BX_64BIT_REG_RDI].rrx = argument;
  bx_cpu.gen_reg[BX_64BIT_REG_RSP].rrx = rsp;
  bx_cpu.gen_reg[BX_64BIT_REG_RIP].rrx = rip;
  bx_cpu.prev_rip = rip;
  bx_cpu.speculative_rsp = false;
  bx_cpu.activity_state = BX_CPU_C::BX_ACTIVITY_STATE_ACTIVE;
  bx_pc_system.activate_timer_ticks(limit_timer, instructions, false);
  if (interrupt_after) bx_pc_system.activate_timer_ticks(interrupt_timer, interrupt_after, false);
  if (nmi_after) bx_pc_system.activate_timer_ticks(nmi_timer, nmi_after, false);
  interrupt_after = nmi_after = 0;
  try {
    bx_cpu.cpu_loop();
  }
  catch (Ended) {
    machine.end(STOP_BROKEN);
  }
  bx_pc_system.deactivate_timer(limit_timer);
  *stop = machine.ended;
}

void pasidon_interrupt(uint8_t vector, uint64_t after)
{
  interrupt_vector = vector;
  if (after)
    interrupt_after = after;
  else
    request_interrupt(nullptr);
}

void pasidon_nmi(uint64_t after)
{
  if (after)
    nmi_after = after;
  else
    request_nmi(nullptr);
}

uint32_t pasidon_waiting(void)
{
  return (machine.interrupts.empty() ? 0 : 1) | (bx_cpu.is_pending(BX_EVENT_NMI) ? 2 : 0);
}

void pasidon_device(uint64_t address) { machine.devices.insert(address); }

size_t pasidon_accesses(access_seen *seen, size_t room)
{
  size_t count = 0;
  for (; count < room && !machine.seen.empty(); count++) {
    seen[count] = machine.seen.front();
    machine.seen.pop_front();
  }
  return count;
}

const char *pasidon_words(void) { return machine.words.c_str(); }
