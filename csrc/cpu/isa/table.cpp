// The kernel table of one instruction set; the only symbol of this build that the dispatcher names.
#include "cpu/isa/entry.h"
#include "cpu/isa/simd.h"

namespace dsr::cpu::DSR_ISA {

#define DSR_STRING_(x) #x
#define DSR_STRING(x) DSR_STRING_(x)

extern const KernelTable table;
const KernelTable table = {
    DSR_STRING(DSR_ISA), kTileVectors * kLanes<float>, kTileVectors * kLanes<double>, gather<float>,
    gather<double>,      grad_weight<float>,           grad_weight<double>,
};

}  // namespace dsr::cpu::DSR_ISA
