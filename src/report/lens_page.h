/* report/lens_page: the interactive page of a lens, one file that needs nothing else. */
#ifndef CHI_LENS_PAGE_H
#define CHI_LENS_PAGE_H

#include "report/report.h"

/* data: lens.json; seen: what the model saw, or NULL. Appends the page. */
int chii_lens_page(chi_str *out, const char *data, const chi_image *seen, chi_err *err);

#endif
