// Forward and grad-input with lanes along rows: the inner loop, and the work of one unit around it.
// As in gather_tile.h, but the taps of one kernel column after the other, with the accumulators
// turned by the distance of the columns in between.
#pragma once

#include "cpu/isa/ahead.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/sink.h"
#include "cpu/isa/store_row.h"
#include "cpu/isa/tile_table.h"
#include "cpu/isa/turn.h"

namespace dsr::cpu::DSR_ISA {

struct RowTileJob {
  const float* packed;  // the tile's first vector in packed channel 0; its rows follow each other
  const int32_t* offsets;
  const float* values;
  const float* bias;      // of the first channel, or null
  const int32_t* bounds;  // [channels * frames + 1], into offsets
  int64_t channels;
  const Walk* walk;
  bool first, last;  // of the blocks: start at the bias; turn back to where the lanes belong
  const float* accumulators;  // [channels][R][VW] vectors
  float* results;             // the same, or rows of the destination itself
  int64_t result_channel;     // scalars from one channel's results to the next
  bool streams;               // results go past the caches
  Ahead* ahead;
};

template <int R, int VW, int SV>
static void accumulate_row_tile(const RowTileJob& shared) {
  constexpr int V = kLanes<float>;
  const RowTileJob job = shared;
  const Walk& walk = *job.walk;
  const int frames = walk.frames;
  const int32_t* bounds = job.bounds;
  for (int64_t d = 0; d < job.channels; ++d, bounds += frames) {
    job.ahead->step();
    Vec<float> sum[R][VW];
    if (job.first) {
      const Vec<float> start = broadcast(job.bias ? job.bias[d] : 0.0f);
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] = start;
    } else {
      const float* from = job.accumulators + d * R * VW * V;
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] = load(from + t * V);
    }
#pragma GCC unroll 1
    for (int i = 0; i < frames; ++i) {
      if (i > 0) DSR_UNROLL for (int r = 0; r < R; ++r) turn_row<VW, SV>(sum[r], walk.turns[i]);
      LaneMask masks[SV];
      DSR_UNROLL for (int v = 0; v < SV; ++v) masks[v] = walk.masks[i][v];
      const int32_t end = bounds[walk.order[i] + 1];
#pragma GCC unroll 1
      for (int32_t k = bounds[walk.order[i]]; k < end; ++k) {
        const float* x = pinned(job.packed + job.offsets[k]);
        const Vec<float> value = broadcast(job.values[k]);
        DSR_UNROLL for (int t = 0; t < R * VW; ++t) sum[t / VW][t % VW] =
            add_product(sum[t / VW][t % VW], value, load(x + t * V), masks[t % VW % SV]);
      }
    }
    if (job.last && walk.turns[frames].amount != 0)
      DSR_UNROLL for (int r = 0; r < R; ++r) turn_row<VW, SV>(sum[r], walk.turns[frames]);
    float* to = job.results + d * job.result_channel;
    if (job.streams) {
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) stream(to + t * V, sum[t / VW][t % VW]);
    } else {
      DSR_UNROLL for (int t = 0; t < R * VW; ++t) store(to + t * V, sum[t / VW][t % VW]);
    }
  }
}

using RowTileFunction = void (*)(const RowTileJob&);

// The kernel of every tile size.
struct RowTiles {
  template <int R, int VW, int SV>
  struct Kernel {
    static constexpr RowTileFunction run = accumulate_row_tile<R, VW, SV>;
  };
};
constexpr auto kRowTiles = RowTileTable<RowTileFunction>::of<RowTiles::Kernel>();

// The work of one unit, lanes along rows.
template <typename Sink>
class GatherRow {
  using Destination = typename Sink::Destination;

 public:
  GatherRow(const GatherArgs<float>& args, char* workspace)
      : args_(args),
        plan_(*args.plan),
        streams_(passes_caches(args)),
        sink_(args, cut_part(&workspace, unit_sums_bytes(plan_, sizeof(float)))) {
    constexpr int size = sizeof(float);
    packed_ =
        reinterpret_cast<float*>(cut_part(&workspace, packed_bytes(plan_, plan_.source, size)));
    accumulators_ = reinterpret_cast<float*>(cut_part(&workspace, accumulator_bytes(plan_, size)));
    for (size_t t = 0; t < plan_.tables.size(); ++t)
      for (int upwards = 0; upwards < 2; ++upwards)
        make_walk(plan_.tables[t], plan_.row.slot_lanes, upwards, &walks_[t][upwards]);
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack(args_.source, plan_, plan_.source, unit, nullptr, packed_);
    const int64_t down = ceil_div(unit.rows, plan_.tile.rows);
    for (int64_t i = 0; i < down; ++i) {
      const int64_t row = boundary(unit.rows, i, down);
      tile(unit, row, boundary(unit.rows, i + 1, down) - row, first, last);
    }
    sink_.end_unit(unit.index, first, last);
  }

 private:
  // Channels whose last block is computed before they are stored, while they are in L1.
  static constexpr int64_t kChunk = 4;

  // Rows [row, row + rows) of the unit, of every class.
  void tile(const Unit& unit, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const int64_t before = plan_.block.count - 1;
    const bool direct = stores_directly();
    for (int64_t b = 0; b < before; ++b)
      for (size_t k = 0; k < plan_.destination.classes.size(); ++k)
        accumulate(k, unit, row, rows, b, first, last, first, false);
    if (direct) return accumulate(0, unit, row, rows, before, first, last, first, true);
    for (int64_t d = first; d < last; d += kChunk) {
      const int64_t end = least(last, d + kChunk), origin = before > 0 ? first : d;
      for (size_t k = 0; k < plan_.destination.classes.size(); ++k)
        accumulate(k, unit, row, rows, before, d, end, origin, false);
      for (size_t k = 0; k < plan_.destination.classes.size(); ++k)
        drain(k, unit, row, rows, d, end, origin);
    }
  }

  // Whether a tile's rows are whole vectors, one after the other, in the destination too.
  bool is_one_run() const {
    const Strides4& s = args_.destination_strides;
    return plan_.destination.classes.size() == 1 && plan_.unit.images == 1 && s.w == 1 &&
           plan_.destination.width == plan_.source.pitch && s.h == plan_.source.pitch;
  }
  // Then registers go straight there, if nothing is to be done to them.
  bool stores_directly() const {
    return Sink::kPlain && std::is_same_v<Destination, float> && is_one_run();
  }
  int64_t class_rows(const DestinationClass& k, const Unit& unit, int64_t row, int64_t rows) const {
    return most(0, least(rows, k.rows - unit.row - row));
  }
  // Accumulators of channel d in class k, where those of `origin` come first.
  float* accumulators(size_t k, int64_t d, int64_t origin, int64_t rows) const {
    return accumulators_ + static_cast<int64_t>(k) * row_class_scalars(plan_, V) +
           (d - origin) * rows * plan_.row.vectors * V;
  }

  void accumulate(size_t index, const Unit& unit, int64_t row, int64_t rows, int64_t b,
                  int64_t begin, int64_t end, int64_t origin, bool direct) {
    const DestinationClass& k = plan_.destination.classes[index];
    const Strides4& s = args_.destination_strides;
    rows = class_rows(k, unit, row, rows);
    if (rows == 0 || k.cols == 0 || (k.table < 0 && b > 0)) return;
    static constexpr Walk kNowhere{};
    const bool reached = k.table >= 0;
    float* kept = accumulators(index, begin, origin, rows);
    float* const to = static_cast<float*>(args_.destination) + unit.image * s.n + begin * s.c +
                      (unit.row + row) * s.h;
    const auto accumulate_row_tile = kRowTiles.at(rows, plan_.row.vectors, slot_vectors(plan_));
    accumulate_row_tile({.packed = packed_ + row * plan_.source.pitch,
                         .offsets = plan_.offsets.data(),
                         .values = args_.values,
                         .bias = args_.bias ? args_.bias + begin : nullptr,
                         .bounds = plan_.segments(k.table, b, begin),
                         .channels = end - begin,
                         .walk = reached ? &walks_[k.table][b % 2 == 0] : &kNowhere,
                         .first = b == 0,
                         .last = b + 1 == plan_.block.count,
                         .accumulators = kept,
                         .results = direct ? to : kept,
                         .result_channel = direct ? s.c : rows * plan_.row.vectors * V,
                         .streams = direct && streams_,
                         .ahead = &ahead_});
  }

  // Stores the rows of class `index` and of its right neighbour, if columns have two classes.
  void drain(size_t index, const Unit& unit, int64_t row, int64_t rows, int64_t begin, int64_t end,
             int64_t origin) {
    const DestinationClass& k = plan_.destination.classes[index];
    const Strides4& s = args_.destination_strides;
    const bool paired = plan_.destination.step_w == 2 &&
                        plan_.destination.classes.size() > index + 1 &&
                        plan_.destination.classes[index + 1].row0 == k.row0;
    const bool together = paired && s.w == 1;
    if (plan_.destination.step_w == 2 && k.col0 == 1 && s.w == 1)
      return;  // stored with its left neighbour
    rows = class_rows(k, unit, row, rows);
    const bool grouped = plan_.destination.step_w == 1 && plan_.destination.step_h == 1 &&
                         s.w == 1 && plan_.row.slot_lanes == k.cols && s.h == k.cols &&
                         unit.images == plan_.unit.images;
    const bool halved = together && plan_.destination.width == 2 * plan_.row.slot_lanes &&
                        2 * plan_.row.slot_lanes >= V && unit.images == plan_.unit.images;
    const bool one_run = is_one_run();
    for (int64_t d = begin; d < end; ++d) {
      const float* from = accumulators(index, d, origin, rows);
      const float* odd = together ? accumulators(index + 1, d, origin, rows) : nullptr;
      Destination* to = static_cast<Destination*>(args_.destination) + unit.image * s.n + d * s.c +
                        (k.row0 + (unit.row + row) * plan_.destination.step_h) * s.h + k.col0 * s.w;
      auto lanes = sink_.of_channel(d);
      if (one_run) {
        lanes.put_run(to, from, rows * s.h, streams_);
        lanes.done();
        continue;
      }
      int64_t done = 0;
      if (halved) {
        drain_halves(from, odd, plan_, rows, plan_.destination.step_h * s.h, s.n, streams_, to,
                     lanes);
        done = rows;
      }
      if (grouped && plan_.row.slot_lanes == V / 2)
        done = drain_groups<V / 2>(from, plan_.row.vectors, rows, s.n, streams_, to, lanes);
      if (grouped && plan_.row.slot_lanes == V / 4)
        done = drain_groups<V / 4>(from, plan_.row.vectors, rows, s.n, streams_, to, lanes);
      drain_rows(k, unit, from, odd, done, rows, to, lanes);
      lanes.done();
    }
  }

  // Rows [first, rows), slot by slot.
  DSR_INLINE_MEMBER void drain_rows(const DestinationClass& k, const Unit& unit, const float* from,
                                    const float* odd, int64_t first, int64_t rows, Destination* to,
                                    typename Sink::Lanes& lanes) const {
    const Strides4& s = args_.destination_strides;
    const int64_t row_stride = plan_.destination.step_h * s.h,
                  n = odd ? plan_.destination.width : k.cols;
    for (int64_t g = 0; g < unit.images; ++g) {
      Destination* at = to + g * s.n + first * row_stride;
      int64_t lane = g * plan_.row.slot_lanes + first * plan_.row.vectors * V;
      for (int64_t r = first; r < rows; ++r, at += row_stride, lane += plan_.row.vectors * V) {
        if (odd || (s.w == 1 && plan_.destination.step_w == 1)) {
          drain_slot(from + lane, odd ? odd + lane : nullptr, n, at, lanes);
        } else {
          for (int64_t q = 0; q < n; ++q)
            lanes.put_one(at + q * plan_.destination.step_w * s.w, from[lane + q]);
        }
      }
    }
  }

  static constexpr int V = kLanes<float>;
  const GatherArgs<float>& args_;
  const GatherPlan& plan_;
  const bool streams_;
  Sink sink_;
  Ahead ahead_;
  float* packed_;
  float* accumulators_;
  Walk walks_[kMaxTables][2];  // downwards, upwards
};

}  // namespace dsr::cpu::DSR_ISA
