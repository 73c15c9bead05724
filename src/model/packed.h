/* packed: a model's matrices as the kernels read them, in one file (`--cache DIR`). Packing is most of the time that a
 * large model takes to load; a second start maps the file instead. With `--stream` the layers come and go while the
 * model runs, so that weights larger than memory will do.
 *
 * The file is a cache: it belongs to this layout, to the arithmetic (bf16 or f32) and to the checkpoint's files as they
 * were (names, sizes, times of change), and is made anew when one of them differs. It holds
 *   magic, key (64 hex digits), zeros to 4096
 *   every matrix in binding order, each at a multiple of 4096
 *   one entry for each of them; then their number, the entries' place, the hash of the weight files, the magic again.
 * Numbers are little-endian. Written beside its name and moved there when it is complete. */
#ifndef CHI_PACKED_H
#define CHI_PACKED_H

#include "model/model.h"

typedef struct chi_packed chi_packed;

/* The cache file of m (path, family and arithmetic are set; mmproj: its second file or NULL) in `dir`, which is made if it is not there. If a file with
 * this key exists it is mapped; else a new one is begun. Caller: chi_packed_free. */
int chi_packed_open(chi_packed **out, const chi_model *m, const char *mmproj, const char *dir, chi_err *err);
/* Reading: fills data, store and bytes of the next matrix (n, k and compute are set), borrowed from the map. */
bool chi_packed_ready(const chi_packed *p);
int chi_packed_next(chi_packed *p, chi_mat *mat, chi_err *err);
/* Writing: appends a packed matrix and frees its data; chi_packed_finish puts the file's in its place. mat stays where
 * it is until then. */
int chi_packed_put(chi_packed *p, chi_mat *mat, chi_err *err);
/* After the last matrix. Writing: hashes the weight files, completes the file, maps it. Reading: m->hash is what it was. */
int chi_packed_finish(chi_packed *p, chi_model *m, chi_err *err);
/* Lets m's decoder layers come and go (chi_pages); after chi_packed_finish. */
int chi_packed_stream(chi_packed *p, chi_model *m, chi_err *err);
void chi_packed_free(chi_packed *p); /* after the model's matrices */

#endif
