// SPDX-License-Identifier: LGPL-2.1-or-later
// What an exit of a guest costs: how many instructions its hypervisor runs from there to the next entry, counted where
// the processor leaves its guest and enters it again, so that no guest and no hypervisor has to take part.
//
// The variable PASIDON_ENGINE_EXITS of the environment names a file. At the end of the process it has a line for each
// exit code and instruction pointer that guests left with:
//
//   exit CODE at RIP times N minimum A median B maximum C
//
// CODE (VMX's basic exit reason, or SVM's exit code) and RIP are hexadecimal, the rest decimal. The counts have the
// instruction that enters, and whatever else that processor ran meanwhile: interrupts, other programs. A repeated string
// instruction counts once for each page that it works on.

#include "processors.h"

#include "cpu/svm.h"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <utility>

bool exits_are_counted;

/// How often so many instructions were run.
typedef std::map<uint64_t, uint64_t> Counts;
/// An exit code, and where the guest was.
typedef std::pair<uint64_t, uint64_t> Exit;

/// What each processor does.
static struct {
  bool in_guest;
  /// It has left a guest, there and at that count of instructions, and entered none since.
  bool left;
  Exit exit;
  uint64_t at;
} watched[BX_MAX_SMP_THREADS_SUPPORTED];

static FILE *report;
/// Never deleted: the report is written when objects are gone already.
static std::map<Exit, Counts> *counted;

static void write_report(void)
{
  for (auto &[exit, counts] : *counted) {
    uint64_t times = 0, passed = 0, median = 0;
    for (auto &[instructions, often] : counts) times += often;
    for (auto &[instructions, often] : counts) {
      median = instructions;
      if ((passed += often) * 2 >= times) break;
    }
    fprintf(report,
            "exit %" PRIx64 " at %" PRIx64 " times %" PRIu64 " minimum %" PRIu64 " median %" PRIu64
            " maximum %" PRIu64 "\n",
            exit.first, exit.second, times, counts.begin()->first, median, counts.rbegin()->first);
  }
  fclose(report);
}

const char *open_exits()
{
  const char *name = getenv("PASIDON_ENGINE_EXITS");
  if (name == nullptr || *name == 0) return nullptr;
  report = fopen(name, "w");
  if (report == nullptr) return "the file that PASIDON_ENGINE_EXITS names cannot be written";
  counted = new std::map<Exit, Counts>;
  exits_are_counted = true;
  atexit(write_report);
  return nullptr;
}

/// A field of the VMCB.
static uint64_t vmcb(BX_CPU_C *cpu, unsigned offset)
{
  Bit64u value = 0;
  BX_MEM(0)->readPhysicalPage(cpu, cpu->vmcbptr + offset, sizeof value, &value);
  return value;
}

void look_for_exit(BX_CPU_C *cpu)
{
  auto &own = watched[cpu->bx_cpuid];
  bool in_guest = cpu->in_vmx_guest || cpu->in_svm_guest;
  if (in_guest == own.in_guest) return;
  own.in_guest = in_guest;
  if (in_guest) {
    if (own.left) (*counted)[own.exit][cpu->icount - own.at]++;
    return;
  }
  // Where its hypervisor reads what the guest left with. After a reset there is none.
  own.left = true;
  if (cpu->in_vmx)
    own.exit = Exit(cpu->VMread32(VMCS_32BIT_VMEXIT_REASON) & 0xffff, cpu->VMread64(VMCS_GUEST_RIP));
  else if (cpu->efer.get_SVME())
    own.exit = Exit(vmcb(cpu, SVM_CONTROL64_EXITCODE), vmcb(cpu, SVM_GUEST_RIP));
  else
    own.left = false;
  own.at = cpu->icount;
}
