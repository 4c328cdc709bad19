// Launches, and the record of every kernel instance that was compiled.
#pragma once

#include <string>
#include <tuple>
#include <type_traits>

#include "runtime.h"

namespace dsr::emulator {

// A kernel instance. All of them, launched or not, make the list that starts at `first`.
struct KernelRecord {
  const char* signature;  // __PRETTY_FUNCTION__ of a function that has the kernel as its argument
  const void* function;
  unsigned long long launches = 0;
  size_t dynamic_shared_limit = 48 * 1024;  // more must be asked for: cudaFuncSetAttribute
  KernelRecord* next;

  KernelRecord(const char* signature, const void* function)
      : signature(signature), function(function), next(first) {
    first = this;
  }
  std::string name() const;  // "dsr::cuda::gather<float, 4>"
  static KernelRecord* first;
};

template <auto Kernel>
struct Registered {
  static const char* signature() { return __PRETTY_FUNCTION__; }
  static inline KernelRecord record{signature(), reinterpret_cast<const void*>(Kernel)};
};

struct Configuration {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes;
};

// Calls body(argument) once for each thread. Throws std::runtime_error where anything went wrong.
void run(KernelRecord& kernel, const Configuration& configuration, void (*body)(void*),
         void* argument, Where where);

template <auto Kernel, class... Parameters>
void launch_with(void (*)(Parameters...), const Configuration& configuration, Where where,
                 std::common_type_t<Parameters>... arguments) {
  std::tuple<Parameters...> copies(arguments...);
  const auto body = [](void* tuple) {
    std::apply(Kernel, *static_cast<std::tuple<Parameters...>*>(tuple));
  };
  run(Registered<Kernel>::record, configuration, body, &copies, where);
}

// Raises what the kernel's launches may ask for; false: no GPU has that much.
bool allow_dynamic_shared(const void* function, size_t bytes);

}  // namespace dsr::emulator

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const void* const function = reinterpret_cast<const void*>(kernel);
  const bool allowed = dsr::emulator::allow_dynamic_shared(function, static_cast<size_t>(value));
  return allowed ? cudaSuccess : cudaErrorInvalidValue;
}
