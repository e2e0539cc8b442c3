// What the pages need beyond htmx: the theme, "select all", the count of what is selected, keys, the lost connection.
// Every page works without it.
"use strict";
(function () {
  const root = document.documentElement;

  function setTheme(theme) {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
    const button = document.getElementById("theme");
    if (button) button.setAttribute("aria-pressed", String(isDark()));
  }
  function isDark() {
    if (root.dataset.theme) return root.dataset.theme === "dark";
    return window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
  let stored = null;
  try { stored = localStorage.getItem("theme"); } catch (error) { /* storage is off */ }
  setTheme(stored);

  function boxes() {
    return Array.from(document.querySelectorAll("input[type=checkbox][name=vm]"));
  }
  function count() {
    const chosen = boxes().filter((box) => box.checked).length;
    const all = document.getElementById("all");
    if (all) {
      all.checked = chosen > 0 && chosen === boxes().length;
      all.indeterminate = chosen > 0 && chosen < boxes().length;
    }
    const told = document.getElementById("chosen");
    if (told) told.textContent = chosen === 0 ? "No VM selected" : chosen + (chosen === 1 ? " VM selected" : " VMs selected");
    const bar = document.getElementById("bulk");
    if (bar) bar.classList.toggle("has", chosen > 0);
  }

  document.addEventListener("DOMContentLoaded", function () {
    setTheme(stored);
    count();
    const theme = document.getElementById("theme");
    if (theme) {
      theme.hidden = false;
      theme.addEventListener("click", function () {
        stored = isDark() ? "light" : "dark";
        try { localStorage.setItem("theme", stored); } catch (error) { /* storage is off */ }
        setTheme(stored);
      });
    }
  });
  document.addEventListener("change", function (event) {
    if (event.target.id === "all") boxes().forEach((box) => { box.checked = event.target.checked; });
    if (event.target.id === "all" || event.target.name === "vm") count();
  });
  // "/" goes to the filter, as in many tools; not while something is typed.
  document.addEventListener("keydown", function (event) {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement ? document.activeElement.tagName : "");
    const filter = document.getElementById("q");
    if (event.key === "/" && !typing && filter && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      filter.focus();
      filter.select();
    }
  });

  function connected(yes) {
    const told = document.getElementById("connection");
    if (!told) return;
    told.hidden = yes;
  }
  document.addEventListener("htmx:sseOpen", function () { connected(true); });
  // The server is away, or the session is over: that ends the stream, and the login page is where to go.
  document.addEventListener("htmx:sseError", function () {
    connected(false);
    fetch(window.location.href, { method: "HEAD" }).then(function (answer) {
      if (answer.status === 401) window.location.assign("/login");
    }, function () { /* away */ });
  });
  document.addEventListener("htmx:afterSwap", count);
  // The session has ended: the login page, not its text in the middle of this one.
  document.addEventListener("htmx:beforeSwap", function (event) {
    if (event.detail.xhr && event.detail.xhr.status === 401) {
      event.detail.shouldSwap = false;
      window.location.assign("/login");
    }
  });
})();
