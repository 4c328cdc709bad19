// Forward and grad-input on matrix units (Lanes::kMatrix): the work of one unit. Pixels lie as in
// Lanes::kPlane, in bfloat16.
#pragma once

#include "cpu/isa/matrix_tile.h"
#include "cpu/isa/pack.h"
#include "cpu/isa/pieces.h"

namespace dsr::cpu::DSR_ISA {

template <typename Sink, typename TileUnit>
class GatherMatrix {
  using Destination = typename Sink::Destination;

 public:
  GatherMatrix(const GatherArgs<float>& args, char* workspace)
      : args_(args),
        plan_(*args.plan),
        sink_(args, cut_part(&workspace, unit_sums_bytes(plan_, sizeof(float)))),
        streams_(passes_caches(args)) {
    packed_ = part<BFloat16>(&workspace, packed_bytes(plan_, plan_.source, sizeof(float)));
    accumulators_ = part<float>(&workspace, accumulator_bytes(plan_, sizeof(float)));
    pairs_ = part<BFloat16>(&workspace, pairs_bytes(plan_));
    if (plan_.has_groups()) clear_beyond_last();
  }

  // Destination channels [first, last) of one unit.
  void run(const Unit& unit, const Ahead& next, int64_t first, int64_t last) {
    ahead_ = next;
    pack_plane_in_bfloat16(args_.source, plan_.source, unit, packed_);
    if (plan_.has_groups()) pair_channels();
    // Strips one after the other: a strip's channels are as many streams of stores as pay.
    for (int64_t d = first; d < last; d += plan_.strip.channels)
      strip(unit, d, least(plan_.strip.channels, last - d));
    sink_.end_unit(unit.index, first, last);
  }

 private:
  static constexpr int64_t kStretch = 8;  // pieces

  template <typename T>
  static T* part(char** workspace, int64_t bytes) {
    return reinterpret_cast<T*>(cut_part(workspace, bytes));
  }

  void strip(const Unit& unit, int64_t d, int64_t channels) {
    for (const DestinationClass& target : plan_.destination.classes) {
      const Pieces pieces(plan_, target, unit, args_.destination_strides);
      const int64_t count = ceil_div(pieces.count(), kStretch);
      for (int64_t i = 0; i < count; ++i)
        stretch(pieces, target.table, boundary(pieces.count(), i, count),
                boundary(pieces.count(), i + 1, count), d, channels);
    }
  }

  // Pieces [begin, end), which are stored together: so each channel reads and writes whole lines in
  // a row.
  void stretch(const Pieces& pieces, int64_t table, int64_t begin, int64_t end, int64_t d,
               int64_t channels) {
    Run runs[kMaxTileElements];
    const int found = pieces.runs(begin, end, runs);
    if (found == 0) return;
    // An odd number of cache lines, so that channels do not fall on the same sets.
    channel_step_ = (end - begin) * kPixels + kTileRows;
    if (table < 0) {  // no tap reaches these pixels
      zero(accumulators_, channels * channel_step_);
    } else {
      const int64_t count = ceil_div(end - begin, plan_.tile.cols * kTileRows / kPixels);
      for (int64_t i = 0; i < count; ++i)
        tile(pieces, table, begin, begin + boundary(end - begin, i, count),
             begin + boundary(end - begin, i + 1, count), d, channels);
    }
    const int64_t channel = args_.destination_strides.c;
    // A sink that computes has so much to do for each run that few, long ones pay.
    const int left =
        Sink::kPlain ? found : close_gaps(accumulators_, channel_step_, channels, runs, found);
    Destination* to = static_cast<Destination*>(args_.destination) + d * channel;
    store_plane(accumulators_, channel_step_, d, channels, runs, left, to, channel, sink_,
                streams_);
  }

  // Pieces [begin, end) of a stretch from `first` on.
  void tile(const Pieces& pieces, int64_t table, int64_t first, int64_t begin, int64_t end,
            int64_t d, int64_t channels) {
    float* accumulators = accumulators_ + (begin - first) * kPixels;
    if (plan_.has_groups())
      return accumulate_groups(pieces, begin, table, d, channels, accumulators);
    for (int64_t b = 0; b < plan_.block.count; ++b)
      accumulate_block(pieces, begin, end, table, b, d, channels, accumulators);
  }

  void accumulate_block(const Pieces& pieces, int64_t begin, int64_t end, int64_t table, int64_t b,
                        int64_t d, int64_t channels, float* accumulators) {
    const int32_t* bounds = plan_.segments(table, b, d);
    const int64_t first = pieces.at(begin);
    const auto accumulate_tile = matrix_tile<TileUnit>(end - begin, plan_.row.halves);
    accumulate_tile(tile_unit_,
                    {.packed = packed_ + first,
                     .next_piece = pieces.at(end - 1) - first,
                     .half = pieces.half(),
                     .offsets = plan_.offsets.data(),
                     .weights = static_cast<const BFloat16*>(args_.tile_values),
                     .bounds = bounds,
                     .first_weight = plan_.first_tiles.data() + (bounds - plan_.bounds.data()),
                     .bias = args_.bias ? args_.bias + d : nullptr,
                     .channels = channels,
                     .first = b == 0,
                     .accumulators = accumulators,
                     .channel_step = channel_step_,
                     .ahead = &ahead_});
  }

  void accumulate_groups(const Pieces& pieces, int64_t piece, int64_t table, int64_t d,
                         int64_t channels, float* accumulators) {
    const int32_t* range = plan_.groups_of(table, d);
    accumulate_rows(tile_unit_, {.packed = pairs_ + pieces.at(piece) * 2,
                                 .half = pieces.half() * 2,
                                 .pair_bytes = plan_.source.plane * 2 * int64_t{sizeof(BFloat16)},
                                 .first = plan_.groups.data() + range[0],
                                 .last = plan_.groups.data() + range[1],
                                 .targets = plan_.row_targets.data(),
                                 .weights = static_cast<const BFloat16*>(args_.tile_values),
                                 .accumulators = accumulators,
                                 .channel_step = channel_step_,
                                 .channels = channels,
                                 .ahead = &ahead_});
  }

  // Channels 2 c and 2 c + 1 side by side, pixel by pixel.
  void pair_channels() {
    const int64_t plane = plan_.source.plane, channels = plan_.source.channels;
    for (int64_t c = 0; c < channels; c += 2) {
      const BFloat16* even = packed_ + c * plane;
      const BFloat16* odd = even + plane;  // blocks of 16 are an even number of channels
      BFloat16* to = pairs_ + c * plane;
      for (int64_t m = 0; m < plane; m += kPixels) {
        const Pairs a = load_pairs(even + m), b = load_pairs(odd + m);
        const Pairs at_even = even_pairs(a, b), at_odd = odd_pairs(a, b);
        store_pairs(to + 2 * m, first_half(at_even, at_odd));
        store_pairs(to + 2 * m + kPixels, second_half(at_even, at_odd));
      }
    }
  }

  // A group spans 32 channels: those beyond the last are zero.
  void clear_beyond_last() {
    const int64_t plane = plan_.source.plane, channels = plan_.source.channels;
    const int64_t all = ceil_div(channels, kTileDepth) * kTileDepth;
    zero(pairs_ + channels * plane, (all - channels) * plane + kSlack);
  }

  const GatherArgs<float>& args_;
  const GatherPlan& plan_;
  Sink sink_;
  const bool streams_;
  Ahead ahead_;
  TileUnit tile_unit_;
  BFloat16* packed_;
  float* accumulators_;  // [channels of a strip][channel_step_]
  int64_t channel_step_;
  BFloat16* pairs_;
};

}  // namespace dsr::cpu::DSR_ISA
