// The sidebar tab with all trainings and libraries: what they hold, how full they are; concepts are found, copied, renamed, removed,
// and dragged into the graph; libraries are saved as files and opened from them.
import { make, icon } from '../shared/dom.mjs'
import { allNodes } from '../shared/find_library.mjs'
import { number } from '../shared/i18n.mjs'
import { DRAGGED, Inserter, listenForDrops } from '../shared/insert_concept.mjs'
import { LOAD, TAKING } from '../shared/kinds.mjs'
import { openShelf } from '../shared/libraries.mjs'
import { opener, saver } from './bundle.mjs'
import { showReport } from './report.mjs'
import { TrainingList } from './trainings.mjs'

export function library({ app, api, t }) {
  const shelf = openShelf(api)

  // Load nodes offer what is there now; the host's list is as old as the page.
  async function offer(nodes) {
    const loads = nodes.filter(({ comfyClass }) => comfyClass === LOAD)
    if (!loads.length) return
    const names = (await shelf.libraries().catch(() => [])).map(({ name }) => name)
    if (names.length) for (const node of loads) node.widgets.find(({ name }) => name === 'name').options.values = names
  }

  return {
    setup() {
      shelf.onChange(() => offer(allNodes(app)))
      const tab = new Tab({ app, t, shelf, trainings: new TrainingList({ api, t }) })
      app.extensionManager.registerSidebarTab({
        id: 'seqlora-concepts', icon: 'pi pi-book', type: 'custom',
        title: t('library.title'), tooltip: t('library.tooltip'),
        render: (place) => tab.show(place),
        destroy: () => tab.hide()
      })
    },
    nodeCreated(node) {
      offer([node])
      // The host marks a node over which something is dragged that it takes.
      if (TAKING[node.comfyClass]) node.onDragOver = (event) => event.dataTransfer.types.includes(DRAGGED)
    }
  }
}

class Tab {
  #folds = new Map() // library -> whether the user wants it unfolded; otherwise only the first is
  #isShown = false
  #turn = 0

  constructor({ app, t, shelf, trainings }) {
    this.app = app
    this.t = t
    this.shelf = shelf
    this.inserter = new Inserter({ app, t, shelf })
    listenForDrops(app, (at, dragged) => this.#try(() => this.inserter.insertAt(at, dragged)))
    shelf.onChange(() => this.#isShown && this.#refresh())
    this.search = make('input', {
      type: 'search', class: 'seqlora-search', placeholder: t('library.search'), 'aria-label': t('library.search'),
      oninput: () => this.#refresh()
    })
    this.status = make('p', { class: 'seqlora-unseen', role: 'status' })
    this.body = make('div')
    this.files = {
      t, shelf, attempt: (act) => this.#try(act),
      tell: (summary) => app.extensionManager.toast.add({ severity: 'info', summary, life: 4000 })
    }
    this.root = make('div', { class: 'seqlora-tab' },
      make('h2', { class: 'seqlora-tab-title' }, t('library.title')),
      make('div', { class: 'seqlora-search-row' }, icon('search'), this.search),
      this.status,
      make('div', { class: 'seqlora-libraries' }, trainings.element, this.body))
    this.root.append(opener(this.files, this.root))
  }

  // The host may call this at any time, also for a place where the tab is already.
  show(place) {
    if (this.root.parentElement === place) return
    place.replaceChildren(this.root)
    place.style.height = '100%'
    this.#isShown = true
    this.shelf.reload()
  }

  hide() {
    this.#isShown = false
  }

  async #refresh() {
    const turn = ++this.#turn
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean)
    let content
    try {
      const libraries = await this.shelf.libraries()
      const sections = await Promise.all(libraries.map((told, index) => this.#section(told, words, index === 0)))
      content = sections.filter(Boolean)
      if (!libraries.length) content = this.#first()
      else if (!content.length) content = make('p', { class: 'seqlora-hint' }, this.t('library.nothing', { words: this.search.value }))
    } catch (error) {
      content = make('p', { class: 'seqlora-hint seqlora-problem' }, error.message)
    }
    if (turn !== this.#turn) return
    const { key } = /** @type {HTMLElement} */ (document.activeElement)?.dataset ?? {} // what is focused stays focused
    this.body.replaceChildren(...[content].flat())
    if (key) this.body.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus()
    const found = this.body.querySelectorAll('.seqlora-card').length
    this.status.textContent = words.length ? this.t('library.found', { count: found }) : ''
  }

  #first() {
    return make('div', { class: 'seqlora-first' },
      icon('book'),
      make('h3', {}, this.t('library.noneTitle')),
      make('p', {}, this.t('library.none')),
      make('button', {
        type: 'button', class: 'seqlora-button seqlora-primary',
        onclick: () => this.app.extensionManager.command.execute('Comfy.BrowseTemplates')
      }, this.t('library.templates')))
  }

  async #section(told, words, isFirst) {
    const { name } = told
    const isOpen = words.length > 0 || (this.#folds.get(name) ?? isFirst)
    const library = isOpen && !told.problem ? await this.shelf.library(name).catch((error) => ({ problem: error.message })) : null
    const problem = told.problem || library?.problem
    const concepts = (library?.concepts ?? []).filter((concept) => matches(concept, words))
    if (words.length && !concepts.length) return null
    const inside = isOpen && make('div', { class: 'seqlora-library-inside' }, problem
      ? make('p', { class: 'seqlora-hint seqlora-problem' }, problem)
      : [told.remark && make('p', { class: 'seqlora-hint' }, told.remark), this.#summary(library), library.concepts.length
          ? make('ul', { class: 'seqlora-cards' }, concepts.map((concept) => this.#card(name, concept)))
          : make('p', { class: 'seqlora-hint' }, this.t('library.empty'))])
    return make('section', { class: 'seqlora-library', 'aria-label': name },
      make('h3', {}, make('button', {
        type: 'button', class: 'seqlora-fold', 'aria-expanded': String(isOpen), 'data-key': `fold ${name}`,
        onclick: () => this.#fold(name, !isOpen)
      }, icon(isOpen ? 'chevron-down' : 'chevron-right'),
      make('span', { class: 'seqlora-library-name' }, name),
      make('span', { class: 'seqlora-count' }, problem ? icon('exclamation-triangle') : String(words.length ? concepts.length : told.concepts)))),
      inside)
  }

  #fold(name, isOpen) {
    this.#folds.set(name, isOpen)
    this.#refresh()
  }

  #summary(library) {
    const { concepts, capacity, left } = library
    const full = make('div', { class: 'seqlora-bar', 'aria-hidden': 'true' }, make('div'))
    full.firstChild.style.width = `${Math.min(100, 100 * concepts.length / capacity)}%`
    const used = { count: concepts.length, capacity, left }
    return make('div', { class: 'seqlora-summary' },
      full,
      make('p', {}, this.t(left > 0 ? 'library.room' : 'library.full', used)),
      facts(this.t('library.ranks', { rank: library.rank }), library.targets, size(library.size)),
      concepts.length > 0 && make('div', {},
        make('button', {
          type: 'button', class: 'seqlora-button', 'data-key': `report ${library.name}`,
          onclick: () => showReport(this, library.name)
        }, icon('chart-bar'), this.t('library.report')),
        saver(this.files, library.name)))
  }

  #card(library, concept) {
    const { name, trigger, class_word: kind } = concept
    const about = { concept: name }
    const act = (key, symbol, onclick, more = '') => make('button', {
      type: 'button', class: `seqlora-button ${more}`, onclick, 'data-key': `${key} ${library}/${name}`,
      'aria-label': this.t(`library.${key}Of`, about), title: this.t(`library.${key}`)
    }, icon(symbol), key === 'use' && this.t('library.use'))
    const card = make('li', {
      class: 'seqlora-card', draggable: 'true', title: this.t('library.drag'),
      ondragstart: (event) => {
        event.dataTransfer.setData(DRAGGED, JSON.stringify({ library, concept: name }))
        event.dataTransfer.effectAllowed = 'copy'
        event.dataTransfer.setDragImage(card.firstChild, 32, 32)
      }
    },
    this.shelf.picture(library, concept),
    make('div', { class: 'seqlora-card-text' },
      make('h4', {}, name),
      make('p', {}, trigger && this.#copier(library, concept), kind && make('span', { class: 'seqlora-kind' }, kind)),
      facts(this.t('library.rank', { rank: concept.rank }), size(concept.size)),
      facts(this.#date(concept.created)),
      make('div', { class: 'seqlora-actions' },
        act('use', 'plus', () => this.#try(() => this.inserter.insert({ library, concept: name })), 'seqlora-use'),
        act('rename', 'pencil', () => this.#rename(library, name)),
        act('remove', 'trash', () => this.#remove(library, name)))))
    return card
  }

  #copier(library, { name, trigger }) {
    const button = make('button', {
      type: 'button', class: 'seqlora-copy', title: this.t('library.copy'), 'data-key': `copy ${library}/${name}`,
      'aria-label': this.t('library.copyOf', { trigger }),
      onclick: () => this.#try(async () => {
        await copy(trigger.replace(/[()]/g, '\\$&')) // as a prompt must have them: parentheses alone are weights there
        this.status.textContent = this.t('library.copied', { trigger })
        button.classList.add('seqlora-copied')
        button.lastChild.replaceWith(icon('check'))
        setTimeout(() => {
          button.classList.remove('seqlora-copied')
          button.lastChild.replaceWith(icon('copy'))
        }, 1500)
      })
    }, make('code', {}, trigger), icon('copy'))
    return button
  }

  async #rename(library, concept) {
    const to = await this.app.extensionManager.dialog.prompt({
      title: this.t('library.renameTitle', { concept }), message: this.t('library.renameMessage'), defaultValue: concept
    })
    if (to?.trim() && to.trim() !== concept) await this.#try(() => this.shelf.rename(library, concept, to.trim()))
  }

  async #remove(library, concept) {
    const isSure = await this.app.extensionManager.dialog.confirm({
      title: this.t('library.removeTitle', { concept }), message: this.t('library.removeMessage', { library }), type: 'delete'
    })
    if (isSure) await this.#try(() => this.shelf.remove(library, concept))
  }

  #date(written) {
    const language = this.app.extensionManager.setting.get('Comfy.Locale')
    return new Intl.DateTimeFormat(language, { dateStyle: 'medium' }).format(new Date(written))
  }

  async #try(act) {
    try {
      await act()
    } catch (error) {
      this.app.extensionManager.toast.add({ severity: 'error', summary: this.t('library.failed'), detail: error.message, life: 10000 })
    }
  }
}

function facts(...told) {
  return make('p', { class: 'seqlora-muted' }, told.join(' \u00b7 '))
}

function matches({ name, trigger, class_word: kind }, words) {
  const all = `${name}\n${trigger}\n${kind}`.toLowerCase()
  return words.every((word) => all.includes(word))
}

function size(bytes) {
  const [unit, of] = bytes < 1e6 ? ['kilobyte', 1e3] : ['megabyte', 1e6]
  return number(bytes / of, { style: 'unit', unit, maximumSignificantDigits: bytes < 100e6 ? 2 : 3 })
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text)
  // Over plain http from another machine browsers offer only this.
  const field = make('textarea', { readonly: true, class: 'seqlora-unseen' })
  field.value = text
  document.body.append(field)
  field.select()
  document.execCommand('copy')
  field.remove()
}
