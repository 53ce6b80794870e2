// What is wider than the page scrolls inside its box; let the keyboard reach it.
const boxes = new ResizeObserver((changes) => {
  for (const { target: box } of changes) {
    const wide = box.scrollWidth > box.clientWidth && getComputedStyle(box).overflowX !== "visible";
    const asked = { tabindex: 0, role: "group", "aria-label": "Scrolls sideways" };
    if (box.tagName === "FIGURE") delete asked.role, delete asked["aria-label"]; // it has a role, its caption is its name
    for (const [name, value] of Object.entries(asked)) wide ? box.setAttribute(name, value) : box.removeAttribute(name);
  }
});
document.querySelectorAll(".katex-display, .pst-scrollable-table-container, figure").forEach((box) => boxes.observe(box));
