// What is wider than the page scrolls inside its box; let the keyboard reach it.
const reachable = () => {
  for (const box of document.querySelectorAll(".katex-display, .pst-scrollable-table-container, figure")) {
    if (box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "visible") {
      box.tabIndex = 0;
      if (box.tagName !== "FIGURE") box.setAttribute("role", "group"); // a figure has its own role
      box.setAttribute("aria-label", "Scrolls sideways");
    }
  }
};
window.addEventListener("load", () => {
  reachable();
  window.addEventListener("resize", reachable);
});
