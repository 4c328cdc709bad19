// Brings the source of the next unit into L2 while this one is computed, a few lines at a time.
#pragma once

#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

class Ahead {
 public:
  Ahead() = default;

  // The operand's rows of `unit`, spread over `steps` calls of step().
  template <typename S>
  Ahead(const Operand<S>& operand, const PackLayout& l, const Unit& unit, int64_t steps) {
    const Strides4& s = operand.strides;
    const int64_t size = operand.element == Element::kBFloat16 ? 2 : sizeof(S);
    const int64_t first = most(0, (l.first_row + unit.row) * l.step_h);
    const int64_t last =
        least(l.height, (l.first_row + unit.row + unit.rows + l.halo_rows) * l.step_h);
    if (last <= first || (s.w != 1 && s.c != 1)) return;
    const int64_t rows = (last - first) * l.width;
    const int64_t pixels = s.c == 1 ? rows * l.channels : rows;  // adjacent in memory
    chunks_ = s.c == 1 ? 1 : l.channels;
    length_ = pixels * size;
    stride_ = s.c * size;
    if (stride_ == length_) {
      length_ *= chunks_;
      chunks_ = 1;
    }
    image_ = static_cast<const char*>(operand.data) + (unit.image * s.n + first * s.h) * size;
    if (operand.other)
      other_ = static_cast<const char*>(operand.other) - static_cast<const char*>(operand.data);
    image_stride_ = s.n * size;
    images_ = unit.images;
    // Steps do not cross chunks, so that each takes a whole number of them.
    const int64_t chunk_lines = ceil_div(length_, kLine), chunks = images_ * chunks_;
    const int64_t steps_per_chunk = most(1, steps / chunks);
    lines_ = ceil_div(chunk_lines, steps_per_chunk);
    at_ = image_;
    end_ = at_ + length_;
  }

  // A few lines of one chunk; what is left at a chunk's end is not worth a second loop.
  DSR_INLINE_MEMBER void step() {
    const char* stop = at_ + lines_ * kLine;
    if (stop > end_) stop = end_;
#pragma GCC unroll 1
    for (; at_ < stop; at_ += kLine) {
      __builtin_prefetch(at_, 0, 2);
      if (other_) __builtin_prefetch(at_ + other_, 0, 2);
    }
    if (at_ >= end_ && lines_ > 0) next_chunk();
  }

 private:
  static constexpr int64_t kLine = kCacheLine;

  void next_chunk() {
    if (++chunk_ == chunks_) {
      chunk_ = 0;
      image_ += image_stride_;
      if (--images_ == 0) lines_ = 0;
    }
    at_ = image_ + chunk_ * stride_;
    end_ = lines_ > 0 ? at_ + length_ : at_;
  }

  const char* at_ = nullptr;
  const char* end_ = nullptr;  // of the chunk
  const char* image_ = nullptr;
  int64_t length_ = 0, chunk_ = 0, chunks_ = 0, stride_ = 0;
  int64_t images_ = 0, image_stride_ = 0;
  int64_t lines_ = 0;  // a step
  int64_t other_ = 0;  // bytes from an element to the one that is added to it
};

}  // namespace dsr::cpu::DSR_ISA
