// Forward and grad-input with lanes along rows: the work of one unit.
#pragma once

#include "cpu/isa/block_row.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/sink.h"
#include "cpu/isa/store_row.h"

namespace dsr::cpu::DSR_ISA {

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
  static constexpr int64_t kChunk = kBlockRows;

  // Rows [row, row + rows) of the unit, of every class.
  void tile(const Unit& unit, int64_t row, int64_t rows, int64_t first, int64_t last) {
    if (plan_.has_groups()) return grouped_tile(unit, row, rows, first, last);
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

  // The same, strip by strip of channels whose sums stay in L1 while the groups pass.
  void grouped_tile(const Unit& unit, int64_t row, int64_t rows, int64_t first, int64_t last) {
    for (int64_t d = first; d < last; d += plan_.strip.channels) {
      const int64_t end = least(last, d + plan_.strip.channels);
      for (size_t k = 0; k < plan_.destination.classes.size(); ++k) {
        if (plan_.destination.classes[k].table < 0) {
          accumulate(k, unit, row, rows, 0, d, end, d, false);
        } else {
          accumulate_strip(k, unit, row, rows, d, end);
        }
      }
      for (size_t k = 0; k < plan_.destination.classes.size(); ++k)
        drain(k, unit, row, rows, d, end, d);
    }
  }

  void accumulate_strip(size_t index, const Unit& unit, int64_t row, int64_t rows, int64_t d,
                        int64_t end) {
    const DestinationClass& k = plan_.destination.classes[index];
    rows = class_rows(k, unit, row, rows);
    if (rows == 0 || k.cols == 0) return;
    const int32_t* range = plan_.groups_of(k.table, d);
    const auto accumulate_row_groups = kRowGroups.at(rows, plan_.row.vectors, slot_vectors(plan_));
    accumulate_row_groups({.groups = {.packed = packed_ + row * plan_.source.pitch,
                                      .packed_channel = plan_.source.channel_stride(),
                                      .first = plan_.groups.data() + range[0],
                                      .last = plan_.groups.data() + range[1],
                                      .targets = plan_.offsets.data(),
                                      .values = args_.values,
                                      .accumulators = accumulators(index, d, d, rows),
                                      .channels = end - d,
                                      .channel_step = rows * plan_.row.vectors * V,
                                      .col_step = V,
                                      .ahead = &ahead_},
                           .walk = &walks_[k.table][1]});
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
    const bool blocks = plan_.block_rows > 1 && !plan_.has_groups();
    const auto accumulate_row_tile =
        blocks ? kRowBlocks.at(rows, plan_.row.vectors, slot_vectors(plan_))
               : kRowTiles.at(rows, plan_.row.vectors, slot_vectors(plan_));
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
      // Tiles of narrow rows may begin within a vector of the destination.
      const bool streams = streams_ && reinterpret_cast<uintptr_t>(to) % kVectorBytes == 0;
      if (one_run) {
        lanes.put_run(to, from, rows * s.h, streams);
        lanes.done();
        continue;
      }
      int64_t done = 0;
      if (halved) {
        drain_halves(from, odd, plan_, rows, plan_.destination.step_h * s.h, s.n, streams, to,
                     lanes);
        done = rows;
      }
      if (grouped && plan_.row.slot_lanes == V / 2)
        done = drain_groups<V / 2>(from, plan_.row.vectors, rows, s.n, streams, to, lanes);
      if (grouped && plan_.row.slot_lanes == V / 4)
        done = drain_groups<V / 4>(from, plan_.row.vectors, rows, s.n, streams, to, lanes);
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
