#include "cuda/conv/plan/list_key.h"

#include "cuda/conv/plan/arithmetic.h"

namespace dsr::cuda {
namespace {

// The key but for what lies where: all taps behind all classes, where no kernel looks.
ListKey key_of(const PassShape& shape, int64_t channel_block) {
  const int64_t in_rows = shape.transposed ? shape.source_channels : shape.dest_channels;
  const int64_t classes = static_cast<int64_t>(shape.classes.size());
  const size_t taps = static_cast<size_t>(shape.taps);
  return {.transposed = shape.transposed,
          .rows = shape.groups * in_rows,
          .groups = shape.groups,
          .source_channels = shape.source_channels,
          .dest_channels = shape.dest_channels,
          .classes = classes + 1,
          .channel_block = channel_block,
          .tap_class = std::vector<int64_t>(taps, classes),
          .first = std::vector<int64_t>(taps, 0),
          .second = std::vector<int64_t>(taps, 0)};
}

}  // namespace

int64_t ListKey::blocks() const {
  return channel_block == 0 ? 1 : ceil_div(source_channels, channel_block);
}

bool ListKey::has_unmet_taps() const {
  for (size_t tap = 0; tap < tap_class.size(); ++tap)
    if (unmet(tap)) return true;
  return false;
}

ListKey slab_key(const PassShape& shape, int64_t channel_block,
                 const std::vector<Layout>& layouts) {
  ListKey key = key_of(shape, channel_block);
  for (size_t i = 0; i < shape.classes.size(); ++i) {
    const Layout& layout = layouts[i];
    for (const PassTap& tap : shape.classes[i].taps) {
      const int64_t col = tap.dw % shape.col_step * layout.phase_cols + tap.dw / shape.col_step;
      key.tap_class[tap.tap] = static_cast<int64_t>(i);
      key.first[tap.tap] = (tap.dh * layout.pitch + col) * kVectorBytes;
      key.second[tap.tap] = layout.plane * kVectorBytes;
    }
  }
  return key;
}

ListKey direct_key(const PassShape& shape) {
  ListKey key = key_of(shape, 0);
  for (size_t i = 0; i < shape.classes.size(); ++i) {
    const PassClass& c = shape.classes[i];
    for (const PassTap& tap : c.taps) {
      key.tap_class[tap.tap] = static_cast<int64_t>(i);
      key.first[tap.tap] = c.first_h + tap.dh;
      key.second[tap.tap] = c.first_w + tap.dw;
    }
  }
  return key;
}

}  // namespace dsr::cuda
