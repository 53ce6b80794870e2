// The page Verdicts: shows the claims of one paper, or of one verdict. Without this script all are there.

(() => {
  const box = document.getElementById("verdict-filters");
  if (!box) return;

  // A claim has one row with its verdict, whose first cell is its anchor, and then a row for each quantity.
  const claims = {};
  for (const row of document.querySelectorAll("article tbody tr")) {
    const id = row.cells[0].textContent.trim();
    if (row.querySelector("td:first-child span[id]")) {
      const section = row.closest("section");
      const title = section.querySelector("h2").firstChild.textContent;
      const verdict = (row.cells[2].querySelector("strong") || row.cells[2]).textContent.trim();
      claims[id] = { rows: [], section, title, paper: title.split(".")[0], verdict };
    }
    if (claims[id]) claims[id].rows.push(row);
  }
  const all = Object.values(claims);

  const choice = (name, every, values) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.name = name;
    for (const [value, text] of [["", every], ...values]) select.add(new Option(text, value));
    label.append(`${name} `, select);
    box.append(label);
    return select;
  };
  const words = ["reproduced", "partly", "not reproduced", "inconclusive", "not run yet"];
  const selects = [
    choice("paper", "all", new Map(all.map((claim) => [claim.paper, claim.title]))),
    choice("verdict", "all", words.filter((word) => all.some((claim) => claim.verdict === word)).map((w) => [w, w])),
  ];
  const count = document.createElement("p");
  count.setAttribute("role", "status");
  count.setAttribute("aria-live", "polite");
  box.append(count);

  const show = () => {
    const shown = all.filter((claim) => selects.every((s) => !s.value || claim[s.name] === s.value));
    for (const claim of all) for (const row of claim.rows) row.hidden = !shown.includes(claim);
    for (const claim of all) claim.section.hidden = !shown.some((other) => other.section === claim.section);
    count.textContent = `${shown.length} of ${all.length} claims shown`;
  };

  // #paper=B&verdict=partly is a view; any other address, a claim's say, shows all.
  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const select of selects) {
      const value = asked.get(select.name) || "";
      select.value = [...select.options].some((option) => option.value === value) ? value : "";
    }
    show();
  };
  const write = () => {
    const view = new URLSearchParams(selects.filter((s) => s.value).map((s) => [s.name, s.value]));
    history.replaceState(null, "", String(view) ? `#${view}` : location.pathname + location.search);
    show();
  };
  for (const select of selects) select.addEventListener("change", write);
  window.addEventListener("hashchange", () => {
    read();
    document.getElementById(location.hash.slice(1))?.scrollIntoView(); // a row that was hidden until now
  });
  read();
})();
