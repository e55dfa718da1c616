#ifndef KERNELS_COMMON_MLA_H
#define KERNELS_COMMON_MLA_H

/* The fixed sizes of DeepSeek-V3's latent attention (docs/formulas.md, section 6). */

enum {
  TDM_MLA_LATENT = 512, /* of a cached token, normalised: keys and values of the absorbed form */
  TDM_MLA_ROPE = 64,    /* of queries and keys, with position; a key's is shared by the heads */
  TDM_MLA_CACHED = TDM_MLA_LATENT + TDM_MLA_ROPE, /* what a page holds of a token */
  TDM_MLA_NOPE = 128,                             /* of a head's query and key, without position */
  TDM_MLA_VALUE = 128                             /* of a head */
};

#endif
