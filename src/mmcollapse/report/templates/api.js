// Shows, of the page of the API, the entries that hold every word of the box. Without it the page shows all.
{
  const box = document.getElementById("query"), count = document.getElementById("count");
  const links = new Map([...document.querySelectorAll(".modules a")].map((a) => [a.hash.slice(1), a.parentNode]));
  const modules = [...document.querySelectorAll(".module")].map((section) => {
    const name = section.querySelector("h2").id;
    const parts = [...section.children].filter((part) => part.tagName !== "H2");
    return { section, link: links.get(name), parts: parts.map((part) => [part, `${name} ${part.textContent}`.toLowerCase()]) };
  });

  const filter = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0, all = 0;
    for (const { section, link, parts } of modules) {
      for (const [part, text] of parts) {
        part.hidden = !words.every((word) => text.includes(word));
        if (part.className === "entry") {
          all += 1;
          shown += !part.hidden;
        }
      }
      section.hidden = link.hidden = parts.length > 0 && parts.every(([part]) => part.hidden);
    }
    count.textContent = words.length ? `${shown} of ${all}` : "";
  };

  box.addEventListener("input", filter);
  // a link leads to an entry that is hidden: show all again, then go there
  addEventListener("hashchange", () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && !target.checkVisibility()) {
      box.value = "";
      filter();
      target.scrollIntoView();
    }
  });
  box.parentNode.hidden = false;
  filter(); // what a reload left in the box
}
