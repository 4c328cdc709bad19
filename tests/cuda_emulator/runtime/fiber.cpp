#include "fiber.h"

#include "sanitizer.h"

#ifndef DSR_EMULATOR_UCONTEXT
// Swaps the stack pointer and the registers that a function must preserve.
extern "C" __attribute__((visibility("hidden"))) void dsr_emulator_swap(void** save, void* load);
asm(R"(
.text
.hidden dsr_emulator_swap
.globl dsr_emulator_swap
.type dsr_emulator_swap,@function
dsr_emulator_swap:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dsr_emulator_swap, .-dsr_emulator_swap
)");
#endif

namespace dsr::emulator {

void prepare(Fiber& fiber, void (*entry)()) {
  fiber.fake_stack = nullptr;
#ifdef DSR_EMULATOR_UCONTEXT
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#else
  // The first swap pops six registers and returns into entry(), with the stack aligned as after a
  // call; the null above is its return address, where unwinding ends.
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + fiber.stack_bytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#endif
}

void switch_fiber(Fiber& from, Fiber& to, bool last) {
  address_switch_begins(last ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
  thread_switch(to.tsan_fiber);
#ifdef DSR_EMULATOR_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  dsr_emulator_swap(&from.stack_pointer, to.stack_pointer);
#endif
  address_switch_ends(from.fake_stack, nullptr, nullptr);
}

void entered(Fiber& from) { address_switch_ends(nullptr, &from.stack, &from.stack_bytes); }

}  // namespace dsr::emulator
