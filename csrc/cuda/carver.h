// One block of memory cut into arrays. Carved from address zero it tells how large the block has to
// be; the same cuts in host memory and in device memory let one copy fill them all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dsr::cuda {

class Carver {
 public:
  static constexpr uintptr_t kAlignment = 16;

  // `base` is a multiple of kAlignment.
  explicit Carver(void* base = nullptr) : base_(reinterpret_cast<uintptr_t>(base)), next_(base_) {}

  template <class T>
  T* take(int64_t count) {
    static_assert(alignof(T) <= kAlignment, "arrays begin at multiples of kAlignment");
    T* const taken = reinterpret_cast<T*>(next_);
    next_ += (static_cast<uintptr_t>(count) * sizeof(T) + kAlignment - 1) & ~(kAlignment - 1);
    return taken;
  }

  size_t bytes() const { return next_ - base_; }

 private:
  uintptr_t base_, next_;
};

}  // namespace dsr::cuda
