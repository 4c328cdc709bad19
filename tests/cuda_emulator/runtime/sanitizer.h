// What the sanitizers must be told: switches of stacks, and which memory is whose. The kernels are
// compiled with -fsanitize=..., the runtime never is; DSR_EMULATOR_ADDRESS and DSR_EMULATOR_THREAD
// say with which. Without either, every function here does nothing.
#pragma once

#include <cstddef>

#ifdef DSR_EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef DSR_EMULATOR_THREAD
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace dsr::emulator {

#ifdef DSR_EMULATOR_THREAD
constexpr bool kThreadSanitizer = true;
constexpr unsigned kNoSynchronization = 1;

// Carries "happens before" from who releases it to who acquires it later. ThreadSanitizer knows it
// by its address, which must therefore never be used again within a launch.
struct Clock {
  void* address = nullptr;
  void release() { __tsan_release(address); }
  void acquire() { __tsan_acquire(address); }
};
Clock new_clock();  // memory.cpp

// Accesses that libc and the C++ library make within the scope are not looked at.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
};

inline void thread_switch(void* fiber) { __tsan_switch_to_fiber(fiber, kNoSynchronization); }
inline void* thread_current() { return __tsan_get_current_fiber(); }
inline void* thread_create() { return __tsan_create_fiber(0); }
inline void thread_destroy(void* fiber) { __tsan_destroy_fiber(fiber); }
#else
constexpr bool kThreadSanitizer = false;
struct Clock {
  void release() {}
  void acquire() {}
};
inline Clock new_clock() { return {}; }
struct Unwatched {
  Unwatched() {}
};
inline void thread_switch(void*) {}
inline void* thread_current() { return nullptr; }
inline void* thread_create() { return nullptr; }
inline void thread_destroy(void*) {}
#endif

#ifdef DSR_EMULATOR_ADDRESS
inline void address_switch_begins(void** fake_stack, const void* stack, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, stack, bytes);
}
inline void address_switch_ends(void* fake_stack, void** from_stack, size_t* from_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, const_cast<const void**>(from_stack), from_bytes);
}
inline void forbid(void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void permit(void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
inline void address_switch_begins(void**, const void*, size_t) {}
inline void address_switch_ends(void*, void**, size_t*) {}
inline void forbid(void*, size_t) {}
inline void permit(void*, size_t) {}
#endif

}  // namespace dsr::emulator
