// The dashboard: asks for state.json again and again and shows what has changed since the time before.
// In: numbers of the process. Out: the page. Text of others (targets, names) is only ever put in as text.
'use strict';

// Two looks a second: the first one after a relay has died makes the process dial it again, the second one shows that it failed.
const PAUSE_MS = 500, ANSWER_MS = 1500, POINTS = 120; // a minute of history
const COLOURS = ['#4cc9f0', '#f9c74f', '#b388ff', '#3ddc97', '#ff9f6b', '#f472b6', '#90be6d', '#8ab4ff'];
const MEDIA = /\.(m3u8|mp4|m4v|webm|mov)(\?|$)/i;

const $ = (id) => document.getElementById(id);
const rates = new Map();   // name -> bit/s, one for each look, the newest last
let before = null;         // the snapshot before
let player = null;         // hls.js, while it plays
let hls = null;            // the promise of hls.js' code

function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === 'colour') element.style.setProperty('--colour', value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function drawn(tag, attributes, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function scaled(value, units, step = 1000) {
  let unit = 0;
  while (value >= step && unit < units.length - 1) { value /= step; unit += 1; }
  return `${value >= 100 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}
const bits = (rate) => scaled(rate, ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s']);
const bytes = (count) => scaled(count, ['B', 'kB', 'MB', 'GB', 'TB']);
const time = (s) => s == null ? '–' : s < 1 ? `${(s * 1000).toFixed(s < 0.01 ? 1 : 0)} ms` : `${s.toFixed(2)} s`;
const percent = (part, all) => all > 0 ? `${Math.round(100 * part / all)} %` : '–';
const sum = (list) => list.reduce((total, value) => total + value, 0);
const values = (object) => Object.values(object ?? {});
function age(s) {
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min` : `${Math.floor(s)} s`;
}

// What has moved since the look before, in bits a second; a counter that fell began anew.
function note(name, count, countBefore, seconds) {
  const rate = countBefore == null || count < countBefore ? 0 : (count - countBefore) * 8 / seconds;
  const history = rates.get(name) ?? Array(POINTS).fill(0);
  history.push(rate);
  history.shift();
  rates.set(name, history);
  return rate;
}

// Areas that lie on top of each other, in the order given.
function chart(svg, lines, label) {
  const [width, height] = [600, 100];
  const tops = lines[0]?.history.map((_, at) => sum(lines.map((line) => line.history[at]))) ?? [];
  const most = Math.max(1e3, ...tops);
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('role', 'img');
  svg.setAttribute('aria-label', label);
  const floor = Array(POINTS).fill(0);
  const x = (at) => (at * width / (POINTS - 1)).toFixed(1), y = (rate) => (height - rate / most * (height - 4)).toFixed(1);
  const shapes = [0.5, 1].map((part) => drawn('line', { class: 'grid', x1: 0, x2: width, y1: y(most * part), y2: y(most * part) }));
  for (const { history, colour } of lines) {
    const under = floor.map((rate, at) => `${x(at)},${y(rate)}`).reverse();
    history.forEach((rate, at) => { floor[at] += rate; });
    const over = floor.map((rate, at) => `${x(at)},${y(rate)}`);
    shapes.push(drawn('polygon', { points: [...over, ...under].join(' '), fill: colour, 'fill-opacity': lines.length > 1 ? 0.55 : 0.25 }));
    shapes.push(drawn('polyline', { class: 'edge', points: over.join(' '), stroke: colour }));
  }
  svg.replaceChildren(...shapes);
  return most;
}

function tiles(state, total) {
  const clients = state.clients.downstream ?? state.clients.root;
  const caches = state.clients.downstream?.traffic.caches ?? [];
  const shown = [['Carried now', ...bits(total).split(' ')]];
  if (clients) shown.push([state.role === 'root' ? 'Clients' : 'Viewers', clients.connections, 'connected']);
  if (clients) shown.push(['Answers', sum(clients.traffic.statuses), clients.traffic.broken ? `${clients.traffic.broken} broken` : `${clients.traffic.aborted} cut off`]);
  if (state.cache) shown.push(['Cache hits', percent(caches[0], sum(caches)), bytes(state.cache.bytes)]);
  if (state.paths.length) shown.push(['Parked', ...bytes(state.parked_bytes).split(' ')]);
  if (state.upstream) shown.push(['Transfers', state.upstream.transfers, `${bytes(state.upstream.kept_bytes)} kept`]);
  shown.push(['Lanes', sum(values(state.ends).map((end) => end.standing)), '']);
  const refused = sum(values(state.doors).flatMap((door) => values(door.refused)))
    + sum(values(state.clients).map((role) => role.turned_away)) + state.pools.pipes_refused + sum(values(state.limits));
  shown.push(['Limits hit', refused, '']);
  const seconds = before ? state.now_s - before.now_s : 0;
  const loads = state.cores.map((core) => {
    const known = before?.cores.find((other) => other.core === core.core);
    return known && seconds > 0 ? (core.busy_s - known.busy_s) / seconds : 0;
  });
  shown.push(['Busiest core', percent(Math.max(0, ...loads), 1), `of ${loads.length}`]);
  shown.push(['Memory', ...bytes(state.process.resident_bytes).split(' ')]);
  $('tiles').replaceChildren(...shown.map(([name, value, more]) =>
    make('div', {}, make('dt', { textContent: name }), make('dd', {}, `${value} `, make('small', { textContent: more })))));
}

function node(name, about) {
  return make('div', { className: 'node' }, make('b', { textContent: name }), make('small', { textContent: about }));
}

function strand(colour, rate, most, hops, down) {
  const wire = () => {
    const line = make('span', { className: 'wire' });
    line.style.setProperty('--thick', `${2 + 6 * Math.min(1, rate / most)}px`);
    return line;
  };
  const row = make('div', { className: `strand${down ? ' down' : rate > 0 ? ' moving' : ''}`, colour });
  row.append(wire(), make('span', { className: 'rate', textContent: down ? 'down' : bits(rate) }), wire());
  for (const hop of hops) {
    row.append(make('span', { className: 'hop' }, hop.name, make('br'), make('small', { textContent: hop.about })), wire());
  }
  return row;
}

function chain(state, total, parts) {
  const strands = make('div', { className: 'strands' });
  const most = Math.max(1e3, ...parts.map((part) => part.rate));
  let ends;
  if (state.paths.length) {
    const upstreams = [...new Set(state.paths.map((path) => path.hops.at(-1)))];
    ends = [node('Viewers', `${state.clients.downstream?.connections ?? 0} connected`), node('Downstream', state.clients_at ?? ''),
      node('Upstream', upstreams.join(', ')), node('Root', state.clients.root ? 'here, too' : '')];
    state.paths.forEach((path, at) => {
      const relays = path.hops.slice(0, -1).map((hop) => ({ name: path.mptcp ? 'Relay (MPTCP)' : 'Relay', about: hop }));
      if (!relays.length) relays.push({ name: path.mptcp ? 'direct, MPTCP' : 'direct', about: path.rtt_s ? time(path.rtt_s) : '' });
      strands.append(strand(colourOf(at), parts[at].rate, most, relays, path.down));
    });
  } else {
    const about = { relay: ['Downstreams', 'Relay', 'Next hops'], upstream: ['Downstreams', 'Upstream', 'Root'], root: ['Clients', 'Root', 'Files'] };
    const [left, here, right] = about[state.role] ?? ['', state.role, ''];
    ends = [node(left, ''), null, node(here, state.clients_at ?? ''), node(right, '')];
    parts.forEach((part, at) => strands.append(strand(colourOf(at), part.rate, most, part.about ? [{ name: part.name, about: part.about }] : [])));
  }
  $('chain').replaceChildren(...[ends[0], ends[1], strands, ends[2], ends[3]].filter(Boolean));
  for (const wire of [...$('chain').children].slice(0, -1)) {
    if (wire.nextSibling?.classList.contains('node') && wire.classList.contains('node')) {
      const gap = make('span', { className: 'strand' + (total > 0 ? ' moving' : '') }, make('span', { className: 'wire' }));
      gap.style.minWidth = '1.5rem';
      wire.after(gap);
    }
  }
}

const colourOf = (at) => COLOURS[at % COLOURS.length];

// Under a chart: where it begins, how high it is, where it ends.
function scale(most) {
  return make('div', { className: 'scale' }, ...['a minute ago', `top ${bits(most)}`, 'now'].map((textContent) => make('span', { textContent })));
}

function card(box, at, colour, history, name, state, rate, facts) {
  const card = box.children[at] ?? box.appendChild(make('article', { className: 'card path' }));
  card.style.setProperty('--colour', colour);
  const svg = card.querySelector('svg') ?? drawn('svg', { class: 'chart' });
  const most = chart(svg, [{ history, colour }], `Rate of ${name} over the last minute`);
  card.replaceChildren(
    make('h3', {}, make('span', { className: 'dot' }), make('span', { textContent: name })),
    make('p', { className: 'head' }, make('span', { className: 'big', textContent: bits(rate) }), make('span', { className: 'state', textContent: state })),
    svg, scale(most),
    make('dl', {}, ...facts.map(([name, value]) => make('div', {}, make('dt', { textContent: name }), make('dd', { textContent: value })))));
  return card;
}

// What a role without paths moves.
function roleCards(state, parts) {
  const ends = state.ends, clients = state.clients.root;
  const door = (state.doors.relay ?? state.doors.upstream), refused = sum(values(door?.refused));
  const standing = (end) => ends[end]?.standing ?? 0;
  const facts = {
    relay: [['Lanes to downstreams', standing('relay-near')], ['Lanes onward', standing('relay-far')], ['Lanes opened', ends['relay-near']?.opened ?? 0], ['Hellos awaited', door?.hellos ?? 0], ['Refused', refused]],
    upstream: [['Lanes', standing('upstream')], ['Transfers', state.upstream?.transfers ?? 0], ['Kept', bytes(state.upstream?.kept_bytes ?? 0)],
      ['Resent', percent(ends.upstream?.resent_bytes ?? 0, ends.upstream?.down_bytes ?? 0)], ['Asked the root', state.upstream?.root_requests ?? 0], ['Root failed', state.upstream?.root_failures ?? 0], ['Refused', refused]],
    root: [['Clients', clients?.connections ?? 0], ['Answers', sum(clients?.traffic.statuses ?? [])], ['Cut off', clients?.traffic.aborted ?? 0]],
  }[state.role] ?? [];
  parts.forEach((part, at) => card($('paths'), at, colourOf(at), rates.get(part.name), part.name, part.about, part.rate, at ? [] : facts));
}

function pathCards(state, parts) {
  const box = $('paths');
  while (box.children.length > parts.length) box.lastChild.remove();
  $('paths-title').textContent = state.paths.length ? 'Paths' : 'Traffic';
  if (!state.paths.length) return roleCards(state, parts);
  state.paths.forEach((path, at) => {
    const lanes = state.lanes.filter((lane) => lane.end === 'downstream' && lane.peer === path.name);
    const control = [...new Set(lanes.map((lane) => lane.congestion_control))].join(', ') || '–';
    const known = path.down ? 'down' : path.lanes ? path.fell_back ? 'up, without MPTCP' : path.mptcp ? `up, ${path.subflows} subflows` : 'up' : 'connecting';
    const facts = [
      ['Round trip', path.rtt_s ? time(path.rtt_s) : '–'], ['Lanes', `${path.leased} of ${path.lanes} busy`], ['Control', control],
      ['Carried', bytes(path.received_bytes)], ['Parked', percent(path.parked_bytes, path.received_bytes)], ['Resent', percent(path.frames_again, path.frames)],
      ['Out of order', `${sum(lanes.map((lane) => lane.out_of_order))} seg.`], ['Lanes opened', path.lanes_opened], ['Dials failed', path.dials_failed],
    ];
    const shown = card(box, at, path.down ? 'var(--bad)' : colourOf(at), rates.get(path.name), path.name, known, parts[at].rate, facts);
    shown.classList.toggle('down', path.down);
  });
}

function bars(title, rows) {
  const all = sum(rows.map(([, count]) => count));
  return make('div', { className: 'card' }, make('h3', { textContent: title }), ...rows.map(([name, count]) => {
    const fill = make('i');
    fill.style.width = `${all ? 100 * count / all : 0}%`;
    return make('div', { className: 'bar' }, make('span', { textContent: name }), make('span', {}, fill), make('span', { textContent: count }));
  }));
}

function spread(report, unit) {
  return [...report.buckets.map(([bound, count]) => [`≤ ${unit(bound)}`, count]), ['more', report.above]].filter(([, count], at, rows) =>
    count > 0 || (at > 0 && rows[at - 1][1] > 0) || rows[at + 1]?.[1] > 0);
}

function answers(state) {
  const traffic = (state.clients.downstream ?? state.clients.root)?.traffic;
  $('recent-section').hidden = !traffic;
  const cards = [];
  if (traffic) cards.push(bars('First byte', spread(traffic.first_byte, time)));
  if (state.paths.length) {
    cards.push(bars('Longest wait for lanes', spread(traffic.stall, time)), bars('Reorder depth', spread(traffic.depth, (frames) => `${frames} fr.`)));
  }
  if (state.cache) cards.push(bars('Cache', ['hit', 'miss', 'collapsed', 'partial', 'bypass'].map((name, at) => [name, traffic.caches[at]])));
  if (state.upstream) cards.push(bars('First byte of the root', spread(state.upstream.root_first_byte, time)));
  for (const [role, door] of Object.entries(state.doors)) cards.push(bars(`Refused by the ${role}`, Object.entries(door.refused)));
  const limits = Object.entries(state.limits).filter(([, count]) => count);
  if (limits.length) cards.push(bars('Limits hit', limits));
  $('answers-section').hidden = !cards.length;
  $('answers-title').textContent = traffic ? 'Answers' : state.upstream ? 'Root and door' : 'Door';
  $('answers').replaceChildren(...cards);
  if (!traffic) return;
  $('recent').replaceChildren(...traffic.recent.slice(0, 10).map((one) => {
    const share = make('div', { className: 'share', role: 'img' });
    const carried = sum(one.shares.map((part) => part.bytes));
    const told = one.shares.filter((part) => part.bytes).map((part) => `${part.path} ${percent(part.bytes, carried)}`).join(', ');
    share.title = told;
    share.setAttribute('aria-label', told || 'no path');
    for (const part of one.shares) {
      const at = state.paths.findIndex((path) => path.name === part.path);
      const piece = make('span');
      piece.style.width = `${carried ? 100 * part.bytes / carried : 0}%`;
      piece.style.background = at < 0 ? 'gray' : colourOf(at);
      share.append(piece);
    }
    const cells = [one.target, one.status || '–', bytes(one.body_bytes), time(one.taken_s), time(one.first_byte_s), time(carried ? one.longest_stall_s : null), carried ? one.reorder_depth : '–', one.cache ?? '–'];
    const row = make('tr', {}, ...cells.map((text) => make('td', { textContent: text, title: String(text) })), make('td', {}, share));
    if (!one.complete || one.status >= 500) row.children[1].className = 'bad';
    if (!one.complete) row.children[1].textContent += ' cut off';
    return row;
  }));
}

function lanes(state) {
  if (!$('lanes-details').open) return;
  const seconds = before ? Math.max(0.05, state.now_s - before.now_s) : 1;
  const key = (lane) => [lane.core, lane.end, lane.peer, lane.number].join(' ');
  const known = new Map((before?.lanes ?? []).map((lane) => [key(lane), lane]));
  $('lanes').replaceChildren(...state.lanes.slice(0, 200).map((lane) => {
    const last = known.get(key(lane)) ?? lane;
    const rate = (field) => bits(Math.max(0, lane[field] - last[field]) * 8 / seconds);
    const cells = [lane.peer, lane.end, lane.core, lane.end.startsWith('relay') ? 'stands' : lane.in_use ? 'busy' : 'idle', rate('received_bytes'), rate('sent_bytes'),
      time(lane.rtt_s), lane.congestion_window, lane.retransmitted, lane.out_of_order, lane.congestion_control];
    return make('tr', {}, ...cells.map((text) => make('td', { textContent: text })));
  }));
}

// The strands of the picture: paths, or whatever this role moves.
function strandsOf(state, seconds) {
  if (state.paths.length) {
    return state.paths.map((path) => ({
      name: path.name,
      rate: note(path.name, path.received_bytes, before?.paths.find((other) => other.name === path.name)?.received_bytes, seconds),
    }));
  }
  const end = (name, field) => [state.ends[name]?.[field] ?? 0, before?.ends[name]?.[field]];
  const body = (at) => at?.clients.root?.traffic.body_bytes;
  return {
    relay: () => [['forwarded down', ...end('relay-near', 'down_bytes')], ['forwarded up', ...end('relay-near', 'up_bytes')]],
    upstream: () => [['payload', ...end('upstream', 'down_bytes')]],
    root: () => [['bodies that have ended', body(state) ?? 0, body(before)]],
  }[state.role]?.().map(([name, count, last]) => ({ name, about: bytes(count), rate: note(name, count, last, seconds) })) ?? [];
}

function playable(state) {
  const asked = (state.clients.downstream?.traffic.recent ?? []).map((one) => one.target).filter((target) => MEDIA.test(target));
  const files = [...new Set([...state.library.map((file) => `/${file}`), ...asked])];
  if (files.length === $('library').children.length) return;
  $('library').replaceChildren(...files.map((value) => make('option', { value })));
  if (!$('file').value && files.length) $('file').value = files[0];
}

// Where viewers are served; a role that listens everywhere is reached where this page was. Behind its name and port, and not resolved
// against them: //elsewhere/a.mp4 is a target that a viewer may have asked for, and to a browser another host.
function source(target) {
  const at = new URL(`http://${before.clients_at}`);
  if (['0.0.0.0', '[::]'].includes(at.hostname)) at.hostname = location.hostname;
  return new URL(at.origin + (target.startsWith('/') ? target : `/${target}`)).href;
}

async function play(event) {
  event.preventDefault();
  const target = $('file').value.trim();
  if (!target || !before?.clients_at) return;
  const video = $('video'), url = source(target);
  player?.destroy();
  player = null;
  $('player-state').textContent = `asking for ${target}`;
  try {
    if (/\.m3u8(\?|$)/i.test(target) && !video.canPlayType('application/vnd.apple.mpegurl')) {
      hls ??= new Promise((done, failed) => {
        // The next try asks for it again.
        const onerror = () => { hls = null; failed(new Error('no hls.js from the process')); };
        document.head.append(make('script', { src: 'hls.js', onload: done, onerror }));
      });
      await hls;
      player = new Hls({ enableWorker: false });
      player.on(Hls.Events.ERROR, (_, error) => { if (error.fatal) $('player-state').textContent = `cannot play: ${error.details}`; });
      player.loadSource(url);
      player.attachMedia(video);
    } else {
      video.src = url;
    }
    await video.play();
  } catch (error) {
    $('player-state').textContent = `cannot play: ${error.message}`;
  }
}

function show(state) {
  const seconds = before ? Math.max(0.05, state.now_s - before.now_s) : 1;
  const parts = strandsOf(state, seconds);
  const total = sum(parts.map((part) => part.rate));
  document.title = `Plait ${state.role}: ${bits(total)}`;
  $('role').textContent = state.role;
  $('about').textContent = `${state.version}, ${state.executor}, up for ${age(state.now_s - state.started_s)}`;
  tiles(state, total);
  chain(state, total, parts);
  $('player-section').hidden = !state.paths.length;
  pathCards(state, parts);
  if (state.paths.length) {
    const svg = $('together').querySelector('svg') ?? $('together').appendChild(drawn('svg', { class: 'chart' }));
    const lines = state.paths.map((path, at) => ({ history: rates.get(path.name), colour: colourOf(at) }));
    const most = chart(svg, lines, 'Rate of all paths over the last minute');
    const legend = state.paths.map((path, at) => make('span', { colour: colourOf(at) }, make('span', { className: 'dot' }), `${path.name} ${percent(parts[at].rate, total)}`));
    $('together').replaceChildren(svg, scale(most), make('div', { className: 'legend' }, ...legend));
    playable(state);
  }
  answers(state);
  lanes(state);
  const down = state.paths.filter((path) => path.down).length;
  say(down ? `${down} of ${state.paths.length} paths down` : 'all well', down ? 'bad' : 'good');
  before = state;
}

function say(text, kind) {
  if ($('status').textContent === text) return;
  $('status').textContent = text;
  $('status').className = kind;
}

// What the process says, or nothing if it does not answer.
async function ask() {
  try {
    const answer = await fetch('state.json', { signal: AbortSignal.timeout(ANSWER_MS) });
    return await answer.json();
  } catch (error) {
    if (error instanceof TypeError || error.name === 'TimeoutError') return null;
    throw error;
  }
}

async function look() {
  try {
    const state = await ask();
    if (state) show(state);
    else say('no answer from the process', 'bad');
  } catch (error) {
    say(`this page fails: ${error.message}`, 'bad');
    throw error;
  } finally {
    setTimeout(look, PAUSE_MS);
  }
}

$('choose').addEventListener('submit', play);
$('video').addEventListener('playing', () => { $('player-state').textContent = 'playing'; });
$('video').addEventListener('error', () => { $('player-state').textContent = 'cannot play: the browser does not take this file'; });
look();
