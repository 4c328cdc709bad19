// Storing a tile of the destination, lanes along the plane.
#pragma once

#include "cpu/isa/shuffle.h"
#include "cpu/isa/sink.h"
#include "cpu/isa/unit.h"

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
  const int64_t step = plan.destination.step_w * strides.w;
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
                       (k.row0 + (unit.row + p) * plan.destination.step_h) * strides.h +
                       (k.col0 + q * plan.destination.step_w) * strides.w;
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

// Moves the sums of runs that continue each other in the destination next to each other, so that a
// sink gets them at once: between rows lie margins. Returns how many runs are left. `stride` is
// from channel to channel.
static int close_gaps(float* accumulators, int64_t stride, int64_t channels, Run* runs, int found) {
  const auto continues = [&](const Run& run, const Run& next) {
    return run.to + run.length * run.step == next.to && run.step == next.step;
  };
  int left = 0;
  for (int first = 0, i; first < found; first = i) {
    Run merged = runs[first];
    for (i = first + 1; i < found && continues(merged, runs[i]); ++i)
      merged.length += runs[i].length;
    for (int64_t o = 0; i > first + 1 && o < channels; ++o) {
      float* sums = accumulators + o * stride;
      float* to = sums + merged.from + runs[first].length;
      for (int r = first + 1; r < i; to += runs[r++].length)
        for (int64_t j = 0; j < runs[r].length; j += kLanes<float>)
          store_first(to + j, load(sums + runs[r].from + j),
                      least(kLanes<float>, runs[r].length - j));
    }
    runs[left++] = merged;
  }
  return left;
}

// The pixels of a run for channels that are adjacent in the destination, from `first` on: squares
// of vectors are transposed.
template <typename S, typename E, typename Sink>
static void store_run_of_channels(const S* accumulators, int64_t stride, int64_t first,
                                  int64_t channels, const Run& run, E* destination, Sink& sink) {
  constexpr int V = kLanes<S>;
  for (int64_t j = 0; j < run.length; j += V) {
    for (int64_t o = 0; o < channels; o += V) {
      const int64_t pixels = least(V, run.length - j), count = least(V, channels - o);
      const S* from = accumulators + o * stride + run.from + j;
      E* to = destination + run.to + j * run.step + o;
      if (pixels == V && count == V) {
        Vec<S> square[V];
        DSR_UNROLL for (int i = 0; i < V; ++i) square[i] = load(from + i * stride);
        transpose<S>(square);
        auto lanes = sink.of_channels(first + o, V);
        DSR_UNROLL for (int i = 0; i < V; ++i) lanes.put(to + i * run.step, square[i]);
        lanes.done();
      } else {
        for (int64_t k = 0; k < count; ++k) {
          auto lanes = sink.of_channel(first + o + k);
          for (int64_t i = 0; i < pixels; ++i)
            lanes.put_one(to + i * run.step + k, from[k * stride + i]);
          lanes.done();
        }
      }
    }
  }
}

// `channels` rows of accumulators from channel `first` on, `stride` elements apart, to the
// destination.
template <typename S, typename E, typename Sink>
static void store_plane(const S* accumulators, int64_t stride, int64_t first, int64_t channels,
                        const Run* runs, int count, E* destination, int64_t channel_stride,
                        Sink& sink, bool streams = false) {
  constexpr int64_t kVector = kVectorBytes / int64_t{sizeof(E)};
  if (channel_stride == 1 && channels > 1) {
    for (int i = 0; i < count; ++i)
      store_run_of_channels(accumulators, stride, first, channels, runs[i], destination, sink);
    return;
  }
  for (int64_t o = 0; o < channels; ++o, accumulators += stride, destination += channel_stride) {
    auto lanes = sink.of_channel(first + o);
    for (int i = 0; i < count; ++i) {
      const Run& run = runs[i];
      if (run.step == 1) {
        lanes.put_run(destination + run.to, accumulators + run.from, run.length,
                      streams && run.to % kVector == 0);
      } else {
        for (int64_t j = 0; j < run.length; ++j)
          lanes.put_one(destination + run.to + j * run.step, accumulators[run.from + j]);
      }
    }
    lanes.done();
  }
}

}  // namespace dsr::cpu::DSR_ISA
