/* A picture of the scales: for each layer a strip with a bar to a key channel, and the histograms. */
#ifndef INSPECT_SVG_H
#define INSPECT_SVG_H

#include "saved.h"

int svg_write(const struct saved *saved, const char *path, struct fault *fault);

#endif
