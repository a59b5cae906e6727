// Words of the query must all occur in a section; those with a word in the heading come first.
const sections = JSON.parse(document.getElementById("sections").textContent);
const found = document.getElementById("found");
document.querySelector("input[type=search]").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  found.replaceChildren();
  if (!words.length) return;
  const inHeading = (s) => words.some((w) => s.heading.toLowerCase().includes(w));
  const hits = sections
    .filter((s) => words.every((w) => (s.heading + " " + s.text).toLowerCase().includes(w)))
    .sort((a, b) => inHeading(b) - inHeading(a));
  if (!hits.length) found.append("Nothing found.");
  for (const s of hits.slice(0, 20)) {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = s.href;
    link.textContent = s.chapter + " › " + s.heading;
    const at = Math.max(s.text.toLowerCase().indexOf(words[0]) - 60, 0);
    const line = document.createElement("div");
    line.className = "soft";
    line.textContent = (at ? "… " : "") + s.text.slice(at, at + 180) + " …";
    item.append(link, line);
    found.append(item);
  }
});
