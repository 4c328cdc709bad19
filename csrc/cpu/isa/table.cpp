// The kernel table of one instruction set; the only symbol of this build that the dispatcher names.
#include "cpu/isa/entry.h"
#include "cpu/isa/row_tile.h"

namespace dsr::cpu::DSR_ISA {

#define DSR_STRING_(x) #x
#define DSR_STRING(x) DSR_STRING_(x)

extern const KernelTable table;
#if defined(__AVX512F__) || defined(DSR_EMULATE_AVX512)
constexpr bool kMasksLanes = true;
#else
constexpr bool kMasksLanes = false;
#endif

const KernelTable table = {
    DSR_STRING(DSR_ISA), kVectorBytes,   kMasksLanes,        kTileVectors,        kRowTileVectors,
    gather<float>,       gather<double>, grad_weight<float>, grad_weight<double>, peak_gflops,
};

}  // namespace dsr::cpu::DSR_ISA
