/* jlog: what a long run has finished, one JSON object a line, so that it can be stopped and taken up again. The first line
 * says which run it is: settings and hashes. Every further line has an "id" of its own. A last line that was cut short is
 * dropped. */
#ifndef CHI_JLOG_H
#define CHI_JLOG_H

#include "file/file.h"

typedef struct chi_jlog chi_jlog;
/* Makes the file or goes on with it. head: an object, compared as a whole, the key that differs is named. Refused in one
 * line: a file of another run, a broken line that is not the last, an id that comes twice, another process writing it.
 * path NULL: nothing is written, lines are only kept. Caller: chi_jlog_close. */
int chi_jlog_open(chi_jlog **out, const char *path, const json_t *head, chi_err *err);
/* Reads a finished or a growing log of any run, without its lock and without writing: chi_jlog_add keeps lines in memory.
 * *head: its first line. Caller: chi_jlog_close, json_decref. */
int chi_jlog_read(chi_jlog **out, json_t **head, const char *path, chi_err *err);
void chi_jlog_close(chi_jlog *l); /* NULL-safe */
/* The line of an id, or NULL. Borrowed. */
const json_t *chi_jlog_find(const chi_jlog *l, const char *id);
/* Appends a line (an object with "id" that is not there yet) and gives it to the system before it returns. line is kept. */
int chi_jlog_add(chi_jlog *l, json_t *line, chi_err *err);
/* Every line but the first, in the file's order: an array. Borrowed. */
const json_t *chi_jlog_lines(const chi_jlog *l);

#endif
