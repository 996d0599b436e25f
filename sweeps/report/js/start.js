// Without this script the page is complete but for what can be picked.

{
  const toggle = document.getElementById("theme");
  if (toggle) themeToggle(toggle);
  document.querySelectorAll("table.sortable").forEach(makeSortable);
  const facts = embedded("report-data");
  if (facts) new { run: RunExplorer, comparison: ComparisonExplorer }[facts.kind](document.getElementById("application"), facts);
}
