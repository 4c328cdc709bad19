// What an elementwise kernel keeps in registers of the affine maps of a channel.
#pragma once

#include "cpu/isa/channel_lanes.h"
#include "cpu/isa/source.h"

namespace dsr::cpu::DSR_ISA {

template <bool kFull, typename S>
DSR_INLINE AffineLanes<S> lanes_of_several(const ChannelAffine<S>& by, int64_t c, int64_t n) {
  return {take<kFull, S>(by.center + c, n), take<kFull, S>(by.scale + c, n),
          take<kFull, S>(by.shift + c, n)};
}

// What is added to the affine map of x.
enum class Added { kNothing, kAsItIs, kMapped };

// The numbers of x's map, and of the other's where it has one.
template <typename S, Added kOther>
struct AffinePair {
  AffineLanes<S> x;
  AffineLanes<S> other;
};
template <typename S>
struct AffinePair<S, Added::kNothing> {
  AffineLanes<S> x;
};
template <typename S>
struct AffinePair<S, Added::kAsItIs> {
  AffineLanes<S> x;
};

template <Added kOther, typename S>
DSR_INLINE AffinePair<S, kOther> pair_of_one(const ChannelAffine<S>& x,
                                             const ChannelAffine<S>& other, int64_t c) {
  if constexpr (kOther == Added::kMapped) {
    return {lanes_of_channel(x, c), lanes_of_channel(other, c)};
  } else {
    return {lanes_of_channel(x, c)};
  }
}
template <Added kOther, bool kFull, typename S>
DSR_INLINE AffinePair<S, kOther> pair_of_several(const ChannelAffine<S>& x,
                                                 const ChannelAffine<S>& other, int64_t c,
                                                 int64_t n) {
  if constexpr (kOther == Added::kMapped) {
    return {lanes_of_several<kFull>(x, c, n), lanes_of_several<kFull>(other, c, n)};
  } else {
    return {lanes_of_several<kFull>(x, c, n)};
  }
}

}  // namespace dsr::cpu::DSR_ISA
