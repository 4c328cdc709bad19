// What pack steps read from: a pointer to an operand, or what acts like one and computes on the
// way.
//
// Pack steps say which channel they read, for lanes along pixels (of_channel) or along channels
// (of_channels); then they load vectors and elements as from an array.
#pragma once

#include "cpu/conv/fused.h"
#include "cpu/isa/channel_lanes.h"

namespace dsr::cpu::DSR_ISA {

// ---- a plain operand ----

template <typename E>
DSR_INLINE const E* of_channel(const E* from, int64_t) {
  return from;
}
template <typename E>
DSR_INLINE const E* of_channels(const E* from, int64_t) {
  return from;
}
template <typename E>
DSR_INLINE const E* address_of(const E* from) {
  return from;
}

// ---- the numbers of a channel, or of as many channels as there are lanes ----

template <typename S>
struct AffineLanes {
  Vec<S> center, scale, shift;

  DSR_INLINE_MEMBER Vec<S> operator()(Vec<S> x) const { return (x - center) * scale + shift; }
};

template <typename S>
DSR_INLINE AffineLanes<S> lanes_of_channel(const ChannelAffine<S>& affine, int64_t c) {
  if (affine.is_identity()) return {Vec<S>{}, broadcast(S{1}), broadcast(S{-0.0})};
  const S center = affine.center ? affine.center[c] : S{0};
  return {broadcast(center), broadcast(affine.scale[c]), broadcast(affine.shift[c])};
}
// The first `count` channels from c on.
template <typename S>
DSR_INLINE AffineLanes<S> lanes_of_channels(const ChannelAffine<S>& affine, int64_t c,
                                            int64_t count = kLanes<S>) {
  if (affine.is_identity()) return lanes_of_channel(affine, c);
  const Vec<S> center = affine.center ? take_head<S>(affine.center + c, count) : Vec<S>{};
  return {center, take_head<S>(affine.scale + c, count), take_head<S>(affine.shift + c, count)};
}

// ---- relu(affine(x)) ----

template <typename S, typename E>
struct Activated {
  const E* at;
  const ChannelAffine<S>* affine;
  Vec<S> floor;  // 0, or minus infinity without a ReLU
  AffineLanes<S> lanes;

  DSR_INLINE_MEMBER Activated operator+(int64_t n) const { return {at + n, affine, floor, lanes}; }
  DSR_INLINE_MEMBER Activated operator-(int64_t n) const { return *this + -n; }
  DSR_INLINE_MEMBER Activated& operator+=(int64_t n) { return at += n, *this; }
  DSR_INLINE_MEMBER Vec<S> compute(Vec<S> x) const { return larger<S>(floor, lanes(x)); }
  // One element of the channel of of_channel().
  DSR_INLINE_MEMBER S operator[](int64_t i) const {
    return compute(broadcast(value_of<S>(at[i])))[0];
  }
};

template <typename S, typename E>
DSR_INLINE Activated<S, E> of_channel(Activated<S, E> from, int64_t c) {
  from.lanes = lanes_of_channel(*from.affine, c);
  return from;
}
template <typename S, typename E>
DSR_INLINE Activated<S, E> of_channels(Activated<S, E> from, int64_t c) {
  from.lanes = lanes_of_channels(*from.affine, c);
  return from;
}
template <typename S, typename E>
DSR_INLINE const E* address_of(const Activated<S, E>& from) {
  return from.at;
}
template <typename S, typename E>
DSR_INLINE Vec<S> load_as(const Activated<S, E>& from) {
  return from.compute(load_as<S>(from.at));
}
template <typename E>
DSR_INLINE Vec<float> load_first(const Activated<float, E>& from, int64_t n) {
  return keep_head<float>(from.compute(load_first(from.at, n)), n);
}

// ---- x + affine(other) ----

template <typename S, typename E>
struct WithOther {
  const E* at;
  const E* other;
  const ChannelAffine<S>* affine;
  AffineLanes<S> lanes;

  DSR_INLINE_MEMBER WithOther operator+(int64_t n) const {
    return {at + n, other + n, affine, lanes};
  }
  DSR_INLINE_MEMBER WithOther operator-(int64_t n) const { return *this + -n; }
  DSR_INLINE_MEMBER WithOther& operator+=(int64_t n) { return at += n, other += n, *this; }
  DSR_INLINE_MEMBER S operator[](int64_t i) const {
    return value_of<S>(at[i]) + lanes(broadcast(value_of<S>(other[i])))[0];
  }
};

template <typename S, typename E>
DSR_INLINE WithOther<S, E> of_channel(WithOther<S, E> from, int64_t c) {
  from.lanes = lanes_of_channel(*from.affine, c);
  return from;
}
template <typename S, typename E>
DSR_INLINE WithOther<S, E> of_channels(WithOther<S, E> from, int64_t c) {
  from.lanes = lanes_of_channels(*from.affine, c);
  return from;
}
template <typename S, typename E>
DSR_INLINE const E* address_of(const WithOther<S, E>& from) {
  return from.at;
}
template <typename S, typename E>
DSR_INLINE Vec<S> load_as(const WithOther<S, E>& from) {
  return load_as<S>(from.at) + from.lanes(load_as<S>(from.other));
}
template <typename E>
DSR_INLINE Vec<float> load_first(const WithOther<float, E>& from, int64_t n) {
  const Vec<float> other = from.lanes(load_first(from.other, n));
  return keep_head<float>(load_first(from.at, n) + other, n);
}

// ---- which of them an operand is ----

template <typename S, typename E, typename Use>
DSR_INLINE void with_elements(const Operand<S>& operand, Use use) {
  const E* data = static_cast<const E*>(operand.data);
  if (operand.other) {
    use(WithOther<S, E>{data, static_cast<const E*>(operand.other), &operand.affine, {}});
  } else if (operand.is_plain()) {
    use(data);
  } else {
    const S floor = operand.relu ? S{0} : -std::numeric_limits<S>::infinity();
    use(Activated<S, E>{data, &operand.affine, broadcast(floor), {}});
  }
}

// Calls use(source) with what reads the operand.
template <typename S, typename Use>
DSR_INLINE void with_source(const Operand<S>& operand, Use use) {
  if constexpr (std::is_same_v<S, float>) {
    if (operand.element == Element::kBFloat16) return with_elements<S, BFloat16>(operand, use);
  }
  with_elements<S, S>(operand, use);
}

}  // namespace dsr::cpu::DSR_ISA
