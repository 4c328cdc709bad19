// Storing a tile of the destination: a step of its own, so that whatever is to happen to the output
// on the way out never touches the inner loops.
#pragma once

#include "cpu/isa/pack.h"

namespace dsr::cpu::DSR_ISA {

// A stretch of a tile that lands at an even step in the destination.
struct Run {
  int64_t from, length, to, step;
};

// The stored pixels of elements [begin, begin + count) of a unit, in order; returns how many runs.
// Neighbouring runs that continue each other become one (1x1 kernels, single pixels).
static int find_runs(const GatherPlan& plan, const DestinationClass& k, const Unit& unit,
                     const Strides4& strides, int64_t begin, int64_t count, Run* runs) {
  const PackLayout& l = plan.source;
  const int64_t image_elements = l.image_rows * l.pitch, rows = least(unit.rows, k.rows - unit.row);
  const int64_t step = plan.step_w * strides.w;
  int found = 0;
  for (int64_t m = begin; m < begin + count;) {
    const int64_t g = m / image_elements, p = m % image_elements / l.pitch, q = m % l.pitch;
    if (g >= unit.images) break;
    const int64_t row_end = m - q + l.pitch;
    if (p >= rows || q >= k.cols) {
      m = p >= rows ? (g + 1) * image_elements : row_end;
      continue;
    }
    const int64_t length = least(k.cols - q, begin + count - m);
    const int64_t to = (unit.image + g) * strides.n +
                       (k.row0 + (unit.row + p) * plan.step_h) * strides.h +
                       (k.col0 + q * plan.step_w) * strides.w;
    Run* last = found ? &runs[found - 1] : nullptr;
    if (last && last->length == 1 && length == 1 && last->from + 1 == m - begin)
      last->step = to - last->to;
    if (last && last->from + last->length == m - begin &&
        last->to + last->length * last->step == to && (length == 1 || last->step == step)) {
      last->length += length;
    } else {
      runs[found++] = {m - begin, length, to, step};
    }
    m = row_end;
  }
  return found;
}

// `channels` rows of accumulators, `stride` elements apart, to the destination.
template <typename S>
static void store_tile(const S* accumulators, int64_t stride, int64_t channels, const Run* runs,
                       int count, S* destination, int64_t channel_stride) {
  if (channel_stride == 1 && channels > 1) {
    for (int i = 0; i < count; ++i)
      for (int64_t j = 0; j < runs[i].length; ++j) {
        S* to = destination + runs[i].to + j * runs[i].step;
        const S* from = accumulators + runs[i].from + j;
        for (int64_t o = 0; o < channels; ++o) to[o] = from[o * stride];
      }
    return;
  }
  for (int64_t o = 0; o < channels; ++o, accumulators += stride, destination += channel_stride) {
    for (int i = 0; i < count; ++i) {
      const Run& run = runs[i];
      if (run.step == 1) {
        copy(destination + run.to, accumulators + run.from, run.length);
      } else {
        for (int64_t j = 0; j < run.length; ++j)
          destination[run.to + j * run.step] = accumulators[run.from + j];
      }
    }
  }
}

}  // namespace dsr::cpu::DSR_ISA
