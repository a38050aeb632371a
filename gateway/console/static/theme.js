// Before anything is drawn, so that nothing flashes: what was chosen here, or else what the system says.
{
  const chosen = localStorage.getItem("tidegate.theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
