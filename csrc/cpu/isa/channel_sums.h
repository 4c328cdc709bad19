// Sums over batch and image of what is stored, by channel.
//
// A thread gathers the sums of one unit in vectors of partial sums, a channel's or (lanes along
// channels) one for as many channels as there are lanes; at the unit's end they become numbers.
// What units leave is added up in double, in their order.
//
// Moments are sums of (y - pivot) and its square, where the pivot is the channel's first value in
// the unit: so nothing cancels, however far the mean is from 0.
#pragma once

#include "cpu/conv/kernels.h"
#include "cpu/conv/workspace.h"
#include "cpu/isa/shuffle.h"
#include "cpu/isa/unit.h"

namespace dsr::cpu::DSR_ISA {

// A thread's sums of the present unit, [channels + V] each, or [channels][V]. Lanes along channels
// may reach past the last one.
template <typename S>
struct SumMemory {
  S* pivot;
  S* has_pivot;  // 0 or 1
  S* first;      // of lanes along channels
  S* second;
  S* first_lanes;  // of lanes along pixels
  S* second_lanes;
};

// The sums that a vector adds to.
template <typename S>
class SumLanes {
 public:
  SumLanes() = default;
  DSR_INLINE_MEMBER SumLanes(S* first, S* second) : first_(first), second_(second) {}
  DSR_INLINE_MEMBER bool asked() const { return first_ != nullptr; }
  DSR_INLINE_MEMBER void add(Vec<S> a, Vec<S> b) {
    a_ += a;
    b_ += b;
  }
  // Sums of a tile become part of the unit's: short sums, added up, round less than a long one.
  DSR_INLINE_MEMBER void keep() {
    store(first_, load(first_) + a_);
    store(second_, load(second_) + b_);
  }

 private:
  S* first_ = nullptr;
  S* second_ = nullptr;
  Vec<S> a_{}, b_{};
};

template <typename S>
class MomentLanes {
 public:
  MomentLanes() = default;
  // `along_channels` says whether each lane has a pivot of its own.
  DSR_INLINE_MEMBER MomentLanes(SumLanes<S> sums, S* pivot, S* has_pivot, bool along_channels)
      : sums_(sums), pivot_at_(pivot), has_pivot_(has_pivot), along_channels_(along_channels) {}
  DSR_INLINE_MEMBER bool asked() const { return sums_.asked(); }
  DSR_INLINE_MEMBER void add(Vec<S> y) { add_head(y, kLanes<S>); }
  DSR_INLINE_MEMBER void add_head(Vec<S> y, int64_t n) {
    choose_pivot(y, n);
    Vec<S> d = y - pivot_;
    if (n != kLanes<S>) d = keep_head<S>(d, n);
    sums_.add(d, d * d);
  }
  DSR_INLINE_MEMBER void keep() { sums_.keep(); }

  // From the first values of the channel, or (lanes along channels) of the first n channels: once.
  DSR_INLINE_MEMBER void choose_pivot(Vec<S> y, int64_t n) {
    if (chosen_) return;
    chosen_ = true;
    const Vec<S> finite = y - y == Vec<S>{} ? y : Vec<S>{};  // inf - inf is NaN
    if (along_channels_) {
      // Lanes from n on are those of other channels, whose turn comes.
      const Vec<S> has = load(has_pivot_), ours = keep_head<S>(broadcast(S{1}), n);
      pivot_ = ours > has ? finite : load(pivot_at_);
      store(pivot_at_, pivot_);
      store(has_pivot_, larger<S>(has, ours));
      return;
    }
    if (*has_pivot_ == 0) {
      *pivot_at_ = finite[0];
      *has_pivot_ = 1;
    }
    pivot_ = broadcast(*pivot_at_);
  }
  // Of a vector after that.
  DSR_INLINE_MEMBER void add_to_pivot(Vec<S> y) {
    const Vec<S> d = y - pivot_;
    sums_.add(d, d * d);
  }

 private:
  SumLanes<S> sums_;
  S* pivot_at_ = nullptr;
  S* has_pivot_ = nullptr;
  bool along_channels_ = false, chosen_ = false;
  Vec<S> pivot_{};
};

// The sums of one thread's present unit.
template <typename S>
class UnitSums {
 public:
  // `memory` holds unit_sums_bytes().
  UnitSums(const GatherArgs<S>& args, char* memory)
      : channels_(args.plan->destination.channels),
        units_(args.plan->units(args.n)),
        partial_(args.finish.sums.partial) {
    if (!partial_) return;
    S* at = reinterpret_cast<S*>(memory);
    for (S** part : {&m_.pivot, &m_.has_pivot, &m_.first, &m_.second}) {
      *part = at;
      at += channels_ + V;
    }
    m_.first_lanes = at;
    m_.second_lanes = at + channels_ * V;
    zero(m_.pivot, 4 * (channels_ + V) + 2 * channels_ * V);
  }

  DSR_INLINE_MEMBER SumLanes<S> sums_of_channel(int64_t d) {
    if (!partial_) return {};
    return {m_.first_lanes + d * V, m_.second_lanes + d * V};
  }
  DSR_INLINE_MEMBER SumLanes<S> sums_of_channels(int64_t d) {
    if (!partial_) return {};
    return {m_.first + d, m_.second + d};
  }
  DSR_INLINE_MEMBER MomentLanes<S> moments_of_channel(int64_t d) {
    if (!partial_) return {};
    return {sums_of_channel(d), m_.pivot + d, m_.has_pivot + d, false};
  }
  DSR_INLINE_MEMBER MomentLanes<S> moments_of_channels(int64_t d) {
    if (!partial_) return {};
    return {sums_of_channels(d), m_.pivot + d, m_.has_pivot + d, true};
  }

  void end_unit(int64_t unit, int64_t first, int64_t last) {
    if (!partial_) return;
    S* pivots = partial_ + unit * channels_;
    S* firsts = pivots + units_ * channels_;
    S* seconds = firsts + units_ * channels_;
    for (int64_t d = first; d < last; d += V) {
      const int64_t count = least(V, last - d);
      add_lanes(m_.first_lanes + d * V, count, m_.first + d);
      add_lanes(m_.second_lanes + d * V, count, m_.second + d);
      for (int64_t k = d; k < d + count; ++k) {
        pivots[k] = m_.pivot[k];
        firsts[k] = m_.first[k];
        seconds[k] = m_.second[k];
      }
    }
    for (S* part : {m_.pivot, m_.has_pivot, m_.first, m_.second}) zero(part + first, last - first);
    zero(m_.first_lanes + first * V, (last - first) * V);
    zero(m_.second_lanes + first * V, (last - first) * V);
  }

 private:
  static constexpr int V = kLanes<S>;

  // sums[k] += the lanes of vector k, for `count` <= V of them.
  static void add_lanes(const S* lanes, int64_t count, S* sums) {
    Vec<S> rows[V];
    for (int64_t k = 0; k < V; ++k) rows[k] = k < count ? load(lanes + k * V) : Vec<S>{};
    const Vec<S> total = sum_rows<S>(rows);
    for (int64_t k = 0; k < count; ++k) sums[k] += total[k];
  }

  const int64_t channels_, units_;
  S* partial_;
  SumMemory<S> m_{};
};

// What the units left, as the channel's mean and variance. `pixels_of(unit)` are the values that
// channel has in it.
template <typename S, typename Pixels>
static void merge_moments(const GatherArgs<S>& args, int64_t d, Pixels pixels_of) {
  const ChannelSums<S>& sums = args.finish.sums;
  const int64_t units = args.plan->units(args.n), channels = args.plan->destination.channels;
  const S* pivot = sums.partial + d;
  const S* first = pivot + units * channels;
  const S* second = first + units * channels;
  double total = 0, count = 0;
  for (int64_t u = 0; u < units; ++u) {
    const double n = static_cast<double>(pixels_of(u));
    total += n * pivot[u * channels] + first[u * channels];
    count += n;
  }
  const double mean = total / count;
  double deviation = 0;
  for (int64_t u = 0; u < units; ++u) {
    const double n = static_cast<double>(pixels_of(u)), sum = first[u * channels];
    const double off = pivot[u * channels] + sum / n - mean;
    deviation += second[u * channels] - sum * sum / n + n * off * off;
  }
  sums.first[d] = static_cast<S>(mean);
  // Rounding may leave a constant channel a little below 0.
  sums.second[d] = static_cast<S>(deviation < 0 ? 0 : deviation / count);
}

template <typename S>
static void merge_sums(const GatherArgs<S>& args, int64_t d) {
  const ChannelSums<S>& sums = args.finish.sums;
  const int64_t units = args.plan->units(args.n), channels = args.plan->destination.channels;
  const S* first = sums.partial + units * channels + d;
  const S* second = first + units * channels;
  double a = 0, b = 0;
  for (int64_t u = 0; u < units; ++u) {
    a += first[u * channels];
    b += second[u * channels];
  }
  sums.first[d] = static_cast<S>(a);
  sums.second[d] = static_cast<S>(b);
}

}  // namespace dsr::cpu::DSR_ISA
