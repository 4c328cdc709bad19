// Brings what the next unit reads into L2 while this one is computed, a few lines at a time: its
// source, and what a sink reads beside its destination.
#pragma once

#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

// Whole rows of an operand.
struct RowsOf {
  const void* data;
  const void* other;  // of the same strides and element, or null
  Strides4 strides;
  int64_t element_bytes;
  int64_t channels, width;
  int64_t first_row, last_row;
  int64_t image, images;
};

// The lines of some rows, spread over steps.
class Stream {
 public:
  Stream() = default;

  Stream(const RowsOf& rows, int64_t steps) {
    const Strides4& s = rows.strides;
    if (rows.last_row <= rows.first_row || (s.w != 1 && s.c != 1)) return;
    const int64_t size = rows.element_bytes;
    const int64_t pixels = (rows.last_row - rows.first_row) * rows.width;
    chunks_ = s.c == 1 ? 1 : rows.channels;
    length_ = (s.c == 1 ? pixels * rows.channels : pixels) * size;  // adjacent in memory
    stride_ = s.c * size;
    if (stride_ == length_) {
      length_ *= chunks_;
      chunks_ = 1;
    }
    const char* data = static_cast<const char*>(rows.data);
    image_ = data + (rows.image * s.n + rows.first_row * s.h) * size;
    if (rows.other) other_ = static_cast<const char*>(rows.other) - data;
    image_stride_ = s.n * size;
    images_ = rows.images;
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
  int64_t other_ = 0;  // bytes from an element to the one that is read beside it
};

class Ahead {
 public:
  Ahead() = default;

  // The operand's rows of `unit`, spread over `steps` calls of step().
  template <typename S>
  Ahead(const Operand<S>& operand, const PackLayout& l, const Unit& unit, int64_t steps)
      : source_({.data = operand.data,
                 .other = operand.other,
                 .strides = operand.strides,
                 .element_bytes = bytes_of<S>(operand.element),
                 .channels = l.channels,
                 .width = l.width,
                 .first_row = most(0, (l.first_row + unit.row) * l.step_h),
                 .last_row =
                     least(l.height, (l.first_row + unit.row + unit.rows + l.halo_rows) * l.step_h),
                 .image = unit.image,
                 .images = unit.images},
                steps) {}

  // And what the sink reads beside the destination.
  template <typename S>
  Ahead(const GatherArgs<S>& args, const Unit& unit, int64_t steps)
      : Ahead(args.source, args.plan->source, unit, steps) {
    const GatherPlan::Destination& d = args.plan->destination;
    const void* first = args.finish.x ? args.finish.x : args.finish.companion;
    if (!first) return;
    beside_ = Stream({.data = first,
                      .other = args.finish.x ? args.finish.companion : nullptr,
                      .strides = args.destination_strides,
                      .element_bytes = bytes_of<S>(args.destination_element),
                      .channels = d.channels,
                      .width = d.width,
                      .first_row = unit.row * d.step_h,
                      .last_row = least(d.height, (unit.row + unit.rows) * d.step_h),
                      .image = unit.image,
                      .images = unit.images},
                     steps);
    reads_beside_ = true;
  }

  DSR_INLINE_MEMBER void step() {
    source_.step();
    if (reads_beside_) beside_.step();
  }

 private:
  template <typename S>
  static int64_t bytes_of(Element element) {
    return element == Element::kBFloat16 ? 2 : sizeof(S);
  }

  Stream source_, beside_;
  bool reads_beside_ = false;
};

}  // namespace dsr::cpu::DSR_ISA
