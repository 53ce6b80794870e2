// Repairs for Jupyter's widget manager, and for wide content, on a Sphinx page.

// The manager calls MathJax 2's Hub.Queue: hand it MathJax 3.
document.addEventListener("DOMContentLoaded", () => {
  if (window.MathJax && !window.MathJax.Hub) {
    window.MathJax.Hub = {
      Queue: ([, , element]) => window.MathJax.startup.promise.then(() => window.MathJax.typesetPromise([element])),
    };
  }
});

// Slider handles have no accessible name: give them their label's.
new MutationObserver(() => {
  for (const handle of document.querySelectorAll(".jupyter-widgets .noUi-handle:not([aria-label])")) {
    const label = handle.closest(".jupyter-widgets").querySelector(".widget-label");
    if (label) handle.setAttribute("aria-label", label.textContent);
  }
}).observe(document.documentElement, { childList: true, subtree: true });

// What is wider than the page scrolls inside its box; let the keyboard reach it.
const reachable = () => {
  for (const box of document.querySelectorAll("div.math, mjx-container[display], .pst-scrollable-table-container, figure")) {
    if (box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "visible") {
      box.tabIndex = 0;
      if (box.tagName !== "FIGURE") box.setAttribute("role", "group"); // a figure has its own role
      box.setAttribute("aria-label", "Scrolls sideways");
    }
  }
};
window.addEventListener("load", async () => {
  if (window.MathJax && window.MathJax.startup) await window.MathJax.startup.promise;
  reachable();
  window.addEventListener("resize", reachable);
});
