// Before anything is drawn: the theme that the reader chose here once; else the system's.
"use strict";

try {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // Storage may be switched off; the system's theme it is.
}
